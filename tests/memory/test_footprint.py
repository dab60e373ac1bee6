"""Bytes by kind: a network counted by hand, and what must hold for every other."""

from dataclasses import replace
from typing import Any

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segtrain.config import Recipe, UNetConfig, override
from segtrain.config.batch_split import FORWARDED_BATCHES, PLACED_BATCHES
from segtrain.memory import Footprint, evaluation_footprint, inference_footprint, parameters, training_footprint
from segtrain.memory.footprint import slots
from segtrain.memory.kernels import DNN, EIGEN, Tensor
from segtrain.training.optimizers import build_optimizer


def footprint(*fields: str, **changes: Any) -> Footprint:
    recipe = override(Recipe(), ["cluster.gpus_per_worker=1", *fields])
    asked = {"batch": 1, "rematerialize": False, "height": 64, "width": 96, **changes}
    return training_footprint(recipe, **asked)


ONE_LEVEL = UNetConfig(filters=2, depth=1, convolutions=1, norm="none", up="transpose_2x2")


def test_a_forward_pass_is_counted_by_hand() -> None:
    # 8x8 pixels: the picture takes 64 * 3 * 4 bytes. down0 makes 64 * 2 * 4 = 512 bytes, which stay for the way up;
    # pooled 128, bottom 16 * 4 * 4 = 256, up-sampled 512. The fullest moment is the joined convolution: the skip, what
    # was up-sampled, the sum and the second addend, 512 each; the picture is gone.
    found = inference_footprint(ONE_LEVEL, 8, 8, batch=1)
    weights = (9 * 3 * 2 + 2) + (9 * 2 * 4 + 4) + (4 * 4 * 2 + 2) + (9 * 4 * 2 + 2) + (2 + 1)
    assert parameters(ONE_LEVEL) == weights
    assert found == Footprint(
        weights=4 * weights,
        gradients=0,
        optimizer=0,
        ema=0,
        activations=3 * 512,
        workspace=512 + int(DNN.forward_gaps * 4 * 512),
        pictures=64 * 3,
    )


def test_scoring_counts_the_masks_and_the_batch_ahead() -> None:
    forward = inference_footprint(UNetConfig(), 64, 96, batch=2)
    found = evaluation_footprint(override(Recipe(), ["cluster.gpus_per_worker=1"]), 64, 96, batch=2)
    pixels = 2 * 64 * 96
    # Images and masks in uint8 of this batch and of the next, and the next one's logits.
    assert found == replace(forward, pictures=forward.pictures + pixels + FORWARDED_BATCHES * 8 * pixels)


@pytest.mark.parametrize(
    ("fields", "count", "of_keras"),
    [
        (["optimizer.kind=adam"], 2, 2),
        (["optimizer.kind=adamw", "optimizer.amsgrad=true"], 3, 3),
        (["optimizer.kind=sgd"], 0, 0),
        (["optimizer.kind=sgd", "optimizer.momentum=0.9"], 1, 1),
        (["optimizer.kind=rmsprop"], 2, 1),  # TensorFlow's kernel wants a momentum to write to
        (["optimizer.kind=rmsprop", "optimizer.momentum=0.9", "optimizer.centered=true"], 3, 3),
    ],
)
def test_slots_are_those_that_keras_makes_and_its_kernel_wants(fields: list[str], count: int, of_keras: int) -> None:
    config = override(Recipe(), fields).optimizer
    optimizer = build_optimizer(config)
    variable = keras.Variable([1.0, 2.0])
    optimizer.build([variable])
    assert slots(config) == count
    assert sum(slot.shape == variable.shape for slot in optimizer.variables) == of_keras


def test_weights_are_counted_once_for_each_thing_that_has_their_size() -> None:
    trainable = 4 * parameters(UNetConfig())
    found = footprint("train.ema_momentum=0.9")
    assert found.optimizer == 2 * trainable
    assert found.ema == trainable
    assert trainable < found.weights < 1.01 * trainable  # moving statistics


def test_accumulation_adds_the_pictures_and_one_copy_of_the_gradients_alone() -> None:
    # So large that the way back is the fullest moment, and not the update.
    large = {"batch": 2, "height": 512, "width": 512}
    once, often = footprint(**large), footprint(**large, accumulation=8)
    assert once.activations
    assert often.activations
    weights = 4 * parameters(UNetConfig())
    pictures = (1 + PLACED_BATCHES) * 7 * 2 * 512 * 512 * 4
    assert 0 <= often.total - once.total - pictures <= weights


def test_rematerialization_keeps_less() -> None:
    plain = footprint("data.height=512", height=512, width=512)
    again = footprint("data.height=512", height=512, width=512, rematerialize=True)
    assert again.total < plain.total / 1.5


def test_half_precision_halves_the_activations() -> None:
    wide, half = footprint(height=512, width=512), footprint("train.precision=mixed_bfloat16", height=512, width=512)
    assert 0.45 < half.activations / wide.activations < 0.6
    assert half.weights == wide.weights


SIZES = st.fixed_dictionaries(
    {"batch": st.integers(1, 4), "height": st.integers(16, 200), "width": st.integers(16, 200)}
)
CHOICES = st.tuples(
    st.sampled_from(["none", "batch", "group"]),
    st.sampled_from(["max_pool", "strided"]),
    st.sampled_from(["resize", "transpose_3x3"]),
    st.booleans(),
    st.sampled_from(["float32", "float64", "mixed_float16"]),
)


@given(SIZES, CHOICES, st.booleans(), st.sampled_from(["batch", "height", "width"]))
def test_more_pixels_never_take_less(
    sizes: dict[str, int], choices: tuple[str, str, str, bool, str], rematerialize: bool, larger: str
) -> None:
    norm, down, up, residual, precision = choices
    fields = [f"model.norm={norm}", f"model.down={down}", f"model.up={up}", f"model.residual={residual}".lower()]
    fields += [f"train.precision={precision}", "model.depth=2", "model.filters=8"]
    before = footprint(*fields, rematerialize=rematerialize, **sizes).total
    after = footprint(*fields, rematerialize=rematerialize, **{**sizes, larger: 2 * sizes[larger]}).total
    assert before < after


def test_kernels_that_lay_out_patches_take_the_window_times_the_input() -> None:
    # 640x960 pixels of 32 channels, 3x3, float32: measured 675 MiB on a CPU without oneDNN (TensorFlow 2.21).
    x, output = (Tensor(name, 1, 640, 960, channels, itemsize=4) for name, channels in (("x", 32), ("output", 16)))
    assert EIGEN.gradient(x, output, window=9) == 640 * 960 * 9 * 32 * 4 == 675 * 2**20
    assert DNN.gradient(x, output, window=9) == 0
