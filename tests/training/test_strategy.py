"""From rank facts to devices: what was asked for is there, or the run does not start."""

import numpy as np
import pytest
import tensorflow as tf

from segtrain.errors import UserError
from segtrain.runs.status import World
from segtrain.training.strategy import build_strategy, configure_process, local_array, place

GPU_WORLD = World(gpus_per_worker=1)


def test_gpus_asked_for_where_there_are_none_are_an_error_and_not_a_slow_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    with pytest.raises(UserError, match=r"cluster\.gpus_per_worker is 1 but TensorFlow sees 0 GPUs"):
        configure_process(GPU_WORLD, deterministic=False, seed=0, tf32=True)


@pytest.mark.parametrize("seen", [1, 4])
def test_another_number_of_gpus_than_asked_for_is_an_error(monkeypatch: pytest.MonkeyPatch, seen: int) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"] * seen)
    with pytest.raises(UserError, match=f"is 2 but TensorFlow sees {seen} GPUs"):
        configure_process(World(replicas_per_worker=2, gpus_per_worker=2), deterministic=False, seed=0, tf32=True)


def test_of_the_gpus_of_its_machine_a_worker_takes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind} {number}" for number in range(4)])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda gpus, kind: taken.extend(gpus))
    monkeypatch.setattr(tf.config, "get_logical_device_configuration", lambda device: None)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, grows: None)
    world = World(replicas_per_worker=2, gpus_per_worker=2, gpu_positions=(1, 3))
    configure_process(world, deterministic=False, seed=0, tf32=True)
    assert taken == ["GPU 1", "GPU 3"]


def test_a_gpu_of_its_own_that_tensorflow_does_not_see_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"] * 2)
    world = World(replicas_per_worker=2, gpus_per_worker=2, gpu_positions=(1, 2))
    with pytest.raises(UserError, match="is 2 but TensorFlow sees 1 GPUs"):
        configure_process(world, deterministic=False, seed=0, tf32=True)


def test_a_process_may_be_configured_again_for_its_next_run() -> None:
    for deterministic in (False, True, False, True):
        configure_process(World(), deterministic=deterministic, seed=3, tf32=True)
        strategy = build_strategy(World())
        assert strategy.num_replicas_in_sync == 1
        assert [device.rpartition("device:")[2] for device in strategy.extended.worker_devices] == ["CPU:0"]


@pytest.mark.parametrize("tf32", [False, True])
def test_float32_is_rounded_on_gpus_only_where_the_recipe_says_so(tf32: bool) -> None:
    configure_process(World(), deterministic=False, seed=0, tf32=tf32)
    assert tf.config.experimental.tensor_float_32_execution_enabled() is tf32


def test_the_seed_sets_every_generator() -> None:
    drawn = []
    for seed in (5, 5, 6):
        configure_process(World(), deterministic=False, seed=seed, tf32=True)
        drawn.append((np.random.random(), float(tf.random.uniform([]))))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0]
    assert drawn[0][1] != drawn[2][1]


def test_a_batch_reaches_its_replica_whole(strategy: tf.distribute.Strategy) -> None:
    batch = {"images": np.arange(6.0).reshape(2, 3), "keys": np.array([4, 5])}
    placed = place(strategy, [batch])
    summed = strategy.run(lambda part: tf.reduce_sum(part["images"]) + tf.cast(part["keys"][1], tf.float64), (placed,))
    assert float(local_array(strategy, summed)) == 20.0


@pytest.mark.parametrize("batches", [0, 2])
def test_as_many_batches_as_replicas_are_placed(strategy: tf.distribute.Strategy, batches: int) -> None:
    with pytest.raises(ValueError, match="zip"):
        place(strategy, [np.zeros(3)] * batches)


def test_the_first_copy_of_a_mirrored_variable_is_its_value(strategy: tf.distribute.Strategy) -> None:
    with strategy.scope():
        variable = tf.Variable([1.0, 2.0])
    assert local_array(strategy, variable).tolist() == [1.0, 2.0]


def test_the_world_counts_replicas_and_knows_its_chief() -> None:
    worlds = [World(workers=2, rank=rank, replicas_per_worker=4) for rank in range(2)]
    assert [world.replicas for world in worlds] == [8, 8]
    assert [world.is_chief for world in worlds] == [True, False]
