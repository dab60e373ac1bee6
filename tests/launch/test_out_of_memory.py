"""A device that runs out of memory, for real: TensorFlow's own allocator fails in the worker's limited address space.

The operation that asks for too much stands in for a large network. A real one, limited like this on a CPU, mostly ends
in Eigen's `std::bad_alloc`, which aborts the process: that is a lost worker, and not what a GPU does.
"""

import functools
import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segtrain.config import Recipe, override
from segtrain.errors import UserError
from segtrain.launch import train_run
from segtrain.runs.status import Driver, RunSummary, World
from tests.support.small_sources import write_boxes

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

PICTURES, HEIGHT, WIDTH, FOLDS = 24, 16, 24, 2
EPOCHS, STEPS_PER_EPOCH, SAVED_EVERY, HUNGRY_FROM_STEP = 2, 3, 2, 4
BYTES_PER_PICTURE = PLENTY_OF_BYTES = 2**29
"""The second is for what tracing, the threads of kernels and the rest of a tiny step need."""


def train_in(pictures: int, recipe: Recipe, world: World, driver: Driver, *, scoring: bool = False) -> RunSummary:
    """The real training, in memory for so many pictures; from a certain step on each of them needs 512 MiB more.

    With `scoring` it is the scoring of pictures that needs so much, and not the steps. Of several workers only the
    last one is short of memory.
    """
    import tensorflow as tf

    from segtrain.training import evaluation, loop
    from segtrain.training.step import TrainStep

    def take_memory(batch: int, bytes_per_picture: object) -> object:
        return tf.raw_ops.Empty(shape=tf.stack([batch, bytes_per_picture]), dtype=tf.uint8)

    def gradients(self: TrainStep, part: Any, step: Any, *rest: object) -> object:
        images = part.images
        wanted = tf.where(step >= HUNGRY_FROM_STEP, BYTES_PER_PICTURE, 1)
        with tf.control_dependencies([take_memory(images.shape[0], wanted)]):
            return gradients_of(self, part._replace(images=tf.identity(images)), step, *rest)

    def evaluate(forward: Callable[[object], object], *rest: object, **named: object) -> object:
        def hungry(batch: object) -> object:
            take_memory(recipe.evaluation.batch_size, BYTES_PER_PICTURE)
            return forward(batch)

        return evaluation.score_fold(hungry, *rest, **named)  # type: ignore[arg-type]

    def limited(self: TrainStep, batch: object, step: int, *rest: Any, **known: Any) -> object:
        limit = _address_space() + pictures * BYTES_PER_PICTURE + PLENTY_OF_BYTES
        if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return take_step(self, batch, step, *rest, **known)

    gradients_of, take_step = TrainStep._gradients, TrainStep.__call__
    if world.rank != world.workers - 1:
        return loop.train(recipe, world, driver)
    # The process ends with the run, so nothing is put back.
    TrainStep.__call__ = limited  # type: ignore[method-assign, assignment]
    if scoring:
        loop.score_fold = evaluate  # type: ignore[attr-defined, assignment]
    else:
        TrainStep._gradients = gradients  # type: ignore[method-assign, assignment]
    return loop.train(recipe, world, driver)


def _address_space() -> int:
    """Bytes of it that this process uses."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set in two folds of twelve."""
    folder = tmp_path_factory.mktemp("memory")
    return write_boxes(folder, pictures=PICTURES, folds=FOLDS, height=HEIGHT, width=WIDTH)


@pytest.fixture
def recipe(root: str, tmp_path: Path) -> Callable[..., Recipe]:
    """Two epochs of three steps of four pictures, the same whatever the split; with changes."""
    fields = [
        f"data.root={root}",
        f"run.storage={tmp_path}",
        f"data.height={HEIGHT}",
        f"data.width={WIDTH}",
        "data.decode_threads=1",
        "model.filters=4",
        "model.depth=1",
        "model.norm=group",
        "model.norm_groups=2",
        "model.dropout=0.2",
        f"train.epochs={EPOCHS}",
        "train.global_batch_size=4",
        "train.precision=float64",
        "evaluation.batch_size=4",
        "evaluation.panels=0",
        f"checkpoint.every_steps={SAVED_EVERY}",
        "cluster.max_failures=0",
    ]
    return lambda *changes: override(Recipe(), [*fields, *changes])


def losses(folder: str) -> dict[int, float]:
    lines = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if line["kind"] == "step"]
    assert len({line["step"] for line in steps}) == len(steps), "no step is there twice"
    return {line["step"]: line["loss"] for line in steps}


@pytest.mark.slow  # a minute: three runs, each with its start of TensorFlow
def test_a_run_that_does_not_fit_goes_on_with_smaller_batches_and_the_same_losses(
    recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    from segtrain.training.loop import train

    wanted = train(recipe("run.name=undisturbed"), World())
    short = recipe("run.name=short")
    summary = train_run.launch(short, functools.partial(train_in, 3))
    shown = capsys.readouterr().out
    assert (
        f"out of memory on the device (OOM when allocating tensor with shape[4,{BYTES_PER_PICTURE}] and type uint8); "
        f"from now on 2 x 2 pictures a replica instead of 1 x 4 (train.per_replica_batch_size=2); "
        f"restarting from the last checkpoint"
    ) in shown
    assert shown.count("out of memory") == 1
    expected, found = losses(recipe("run.name=undisturbed").run.folder), losses(short.run.folder)
    assert list(found) == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    assert found == pytest.approx(expected, rel=1e-9)
    assert summary.dice_hard_original == pytest.approx(wanted.dice_hard_original, abs=1e-9)
    assert "per_replica_batch_size: 2" in Path(short.run.folder, "recipe.yaml").read_text()


@pytest.mark.slow  # three attempts, 25 s
def test_what_does_not_fit_one_picture_at_a_time_ends_in_a_sentence_with_the_ways_out(
    recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"^out of memory on the device \(OOM when .*shape\[1,") as caught:
        train_run.launch(recipe("run.name=never"), functools.partial(train_in, 0))
    assert "one picture of 16 x 24 (data.height x data.width)" in str(caught.value)
    assert "train.rematerialize=true, or data.fit=crop" in str(caught.value)
    halved = re.findall(r"from now on (\d x \d) pictures", capsys.readouterr().out)
    assert halved == ["2 x 2", "4 x 1"]


@pytest.mark.slow  # two attempts, 20 s
def test_memory_that_ran_out_in_scoring_halves_the_batch_of_scoring_alone(
    recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    scored = recipe("run.name=scored", "train.epochs=1")
    train_run.launch(scored, functools.partial(train_in, 3, scoring=True))
    assert "scoring with evaluation.batch_size=2 instead of 4" in capsys.readouterr().out
    assert list(losses(scored.run.folder)) == [1, 2, 3]
    kept = Path(scored.run.folder, "recipe.yaml").read_text()
    assert "per_replica_batch_size: null" in kept


@pytest.mark.slow  # two attempts of two workers, 30 s
def test_one_worker_out_of_memory_ends_the_attempt_of_all_and_all_get_smaller_batches(
    recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    both = recipe("run.name=both", "cluster.workers=2")
    train_run.launch(both, functools.partial(train_in, 1))
    shown = capsys.readouterr().out
    assert "shape[2," in shown
    assert "from now on 2 x 1 pictures a replica instead of 1 x 2" in shown
    assert list(losses(both.run.folder)) == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
