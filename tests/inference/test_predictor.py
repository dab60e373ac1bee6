"""Probabilities are the same whole or in tiles, in any batch; mirror images and members are averaged."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from segtrain.config import InferenceConfig, UNetConfig
from segtrain.errors import UserError
from segtrain.inference.apply import FittedNetwork
from segtrain.inference.load_networks import Member
from segtrain.inference.predictor import Logits, Predictor
from segtrain.inference.stored_networks import Facts
from segtrain.inference.tiles import positions
from segtrain.memory import inference_footprint
from segtrain.models import build_model
from segtrain.models.probability import upsample_probability
from segtrain.pipeline.decode import resize_image
from tests.support.networks import probability_of

CONFIG = UNetConfig(filters=4, depth=2, convolutions=1, norm="batch")
REACH = 20
"""Pixels around one that its logit depends on: 1 at the top, 2 and 4 deeper, 2 and 4 in going up, 2 and 1 after it,
and at most 3 more by the poolings' grid."""


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def member(apply: Callable[[tf.Tensor], tf.Tensor], **changes: Any) -> Member:
    return dataclasses.replace(Member("a network", apply, "0" * 32, multiple=1), **changes)


def brightness(pictures: tf.Tensor) -> tf.Tensor:
    """Logits that follow each pixel's own green."""
    return 4.0 * pictures[..., 1:2] - 2.0


@pytest.fixture(scope="module")
def network() -> Member:
    """A U-Net with random weights, whose logits spread over a few units."""
    model = build_model(CONFIG, seed=1)
    model.get_layer("logits").set_weights([10.0 * weight for weight in model.get_layer("logits").get_weights()])
    return member(lambda pictures: model(pictures, training=False), multiple=4)


def away_from_borders(length: int, tile: int, overlap: float) -> np.ndarray:
    """Whether each pixel along a side is further than REACH from where a tile begins or ends inside the picture."""
    cells, margin = -(-length // 4), -length % 4 // 2
    away = np.ones(length, bool)
    for start in positions(cells, tile // 4, overlap):
        for border in (4 * start, 4 * start + tile):
            if 0 < border < 4 * cells:
                away[max(0, border - margin - REACH) : max(0, border - margin + REACH)] = False
    return away


@pytest.mark.parametrize("flip", [False, True])
def test_whole_and_tiled_agree_away_from_tile_borders(network: Member, flip: bool) -> None:
    (picture,) = pictures((203, 301))
    tiled = InferenceConfig(tile_height=96, tile_width=128, overlap=0.5, batch_size=3, flip=flip)
    whole = probability_of(Predictor([network], InferenceConfig(flip=flip)), picture)
    assert whole.std() > 0.1
    away = np.outer(away_from_borders(203, 96, 0.5), away_from_borders(301, 128, 0.5))
    if flip:
        away &= away[:, ::-1]
    assert away.mean() > 0.02
    difference = np.abs(probability_of(Predictor([network], tiled), picture) - whole)
    assert difference[away].max() < 1e-3
    assert np.median(difference) < 1e-3
    # Tiles that start anywhere see other cells than the whole picture does.
    anywhere = probability_of(Predictor([dataclasses.replace(network, multiple=1)], tiled), picture)
    assert np.abs(anywhere - whole)[away].max() > 0.05


def test_a_tile_of_the_size_of_the_picture_is_the_picture(network: Member) -> None:
    (picture,) = pictures((40, 60))
    whole = probability_of(Predictor([network], InferenceConfig()), picture)
    tiled = probability_of(Predictor([network], InferenceConfig(tile_height=40, tile_width=64)), picture)
    np.testing.assert_array_equal(tiled, whole)


def test_a_flip_changes_nothing_for_a_network_that_turns_with_the_picture() -> None:
    convolution = keras.layers.Conv2D(1, 3, padding="same")
    convolution.build((None, None, None, 3))
    kernel = np.random.default_rng(2).normal(size=(3, 3, 3, 1))
    convolution.set_weights([kernel + kernel[:, ::-1], np.zeros(1)])
    equivariant = member(convolution)
    (picture,) = pictures((31, 42))
    plain, flipped = (
        probability_of(Predictor([equivariant], InferenceConfig(flip=flip)), picture) for flip in (False, True)
    )
    assert plain.std() > 0.1
    np.testing.assert_allclose(flipped, plain, rtol=0, atol=1e-6)


def test_a_flip_averages_the_probabilities_of_the_picture_and_its_mirror_image() -> None:
    def left(pictures: tf.Tensor) -> tf.Tensor:
        return 0.0 * pictures[..., :1] + tf.constant([3.0, 0.0, -1.0, 0.0])[None, None, :, None]

    found = probability_of(Predictor([member(left)], InferenceConfig(flip=True)), np.zeros((2, 4, 3), np.uint8))
    outer, inner = (1 / (1 + np.exp(-3.0)) + 0.5) / 2, (1 / (1 + np.exp(1.0)) + 0.5) / 2
    np.testing.assert_allclose(found, [[outer, inner, inner, outer]] * 2, atol=1e-6)


def test_every_size_is_decoded_once_and_members_are_averaged_at_the_size_of_the_picture() -> None:
    (picture,) = pictures((24, 36))
    sizes = [(12, 18), (12, 18), None, (8, 8)]
    predictor = Predictor([member(brightness, size=size) for size in sizes], InferenceConfig())
    asked = []

    def decode(height: int, width: int) -> np.ndarray:
        asked.append((height, width))
        return resize_image(picture, height, width)

    prepared = predictor.prepare(decode, 24, 36)
    assert asked == [(12, 18), (24, 36), (8, 8)]
    found = predictor.finish(predictor.forward([prepared])[0])
    alone = [
        upsample_probability(brightness(resize_image(picture, *(size or (24, 36))) / np.float32(255)), 24, 36)
        for size in sizes
    ]
    assert (found.shape, found.dtype) == ((24, 36), np.float32)
    np.testing.assert_allclose(found, np.mean(alone, axis=0), rtol=0, atol=1e-6)


def test_pictures_come_back_in_order_whatever_their_sizes_and_the_batch(network: Member) -> None:
    many = pictures(*[(20, 30), (24, 30), (20, 30), (20, 30), (24, 30), (17, 9), (20, 30)])
    predictor = Predictor([network], InferenceConfig(batch_size=3, flip=True))
    prepared = [
        predictor.prepare(lambda height, width, picture=picture: picture, *picture.shape[:2]) for picture in many
    ]
    for picture, logits in zip(many, predictor.forward(prepared), strict=True):
        np.testing.assert_allclose(predictor.finish(logits), probability_of(predictor, picture), rtol=0, atol=1e-5)
    assert predictor.forward([]) == []


def test_a_new_size_of_picture_needs_no_new_graph() -> None:
    traced = []

    def apply(pictures: tf.Tensor) -> tf.Tensor:
        traced.append(pictures.shape)
        return brightness(pictures)

    predictor = Predictor([member(apply)], InferenceConfig())
    for picture in pictures(*[(10 + number, 20 + 2 * number) for number in range(8)]):
        probability_of(predictor, picture)
    assert len(traced) <= 2


def test_the_mean_of_probabilities_counts_and_not_that_of_logits() -> None:
    maps = [np.full((2, 2, 1), value, np.float32) for value in (-9.0, 2.0)]
    found = Predictor([member(brightness)], InferenceConfig()).finish(Logits(4, 4, maps))
    np.testing.assert_allclose(found, (1 / (1 + np.exp(9.0)) + 1 / (1 + np.exp(-2.0))) / 2, atol=1e-6)


def known(config: UNetConfig) -> Facts:
    return Facts.model_validate({"input": {"fit": "crop", "height": 8, "width": 8}, "model": config.model_dump()})


def test_the_device_bounds_the_batch_and_then_the_tile() -> None:
    def layout(device_bytes: int | None, **settings: Any) -> tuple[tuple[int, int], int]:
        known_member = member(brightness, facts=known(CONFIG), multiple=4)
        return tuple(FittedNetwork(known_member, InferenceConfig(**settings), device_bytes).layout(203, 301))

    def needs(batch: int, height: int, width: int) -> int:
        return inference_footprint(CONFIG, height, width, batch=batch).total

    assert layout(None) == layout(needs(8, 203, 301)) == ((203, 301), 8)
    assert layout(needs(8, 203, 301) - 1) == ((203, 301), 7)
    assert layout(needs(1, 203, 301)) == ((203, 301), 1)
    tile, batch = layout(needs(1, 203, 301) - 1)
    assert tile == (204, 152)
    assert needs(batch, *tile) < needs(1, 203, 301) <= needs(batch + 1, *tile)
    assert layout(None, tile_height=90, tile_width=400) == ((92, 304), 8)
    assert layout(needs(2, 92, 304), tile_height=90, tile_width=400) == ((92, 304), 2)
    with pytest.raises(UserError, match=r"does not fit the device's memory even in tiles of \d+x\d+; .*device_bytes"):
        layout(1000)


def hungry(pixels: int) -> Member:
    """A network that asks for 2**60 bytes where it gets more than so many pixels at once."""

    def apply(pictures: tf.Tensor) -> tf.Tensor:
        many = tf.reduce_prod(tf.shape(pictures)[:3]) > pixels
        waste = tf.fill([tf.where(many, tf.constant(2**58, tf.int64), tf.constant(1, tf.int64))], pictures[0, 0, 0, 0])
        return brightness(pictures) + 0.0 * waste[-1]

    return member(apply, multiple=8)


@pytest.mark.parametrize(("pixels", "warnings"), [(10**6, 0), (3 * 96 * 128, 2), (96 * 128, 3), (96 * 64, 4)])
def test_out_of_memory_on_the_device_halves_the_batch_and_then_the_tile(
    pixels: int, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    many = pictures(*[(96, 128)] * 8)
    predictor = Predictor([hungry(pixels)], InferenceConfig())
    prepared = [
        predictor.prepare(lambda height, width, picture=picture: picture, *picture.shape[:2]) for picture in many
    ]
    with caplog.at_level(logging.WARNING, "segtrain"):
        for _ in range(2):  # the second time it knows
            found = [predictor.finish(logits) for logits in predictor.forward(prepared)]
    for picture, probability in zip(many, found, strict=True):
        wanted = upsample_probability(brightness(picture / np.float32(255)), 96, 128)
        np.testing.assert_allclose(probability, wanted, rtol=0, atol=1e-5)
    assert len(caplog.records) == warnings
    assert all("does not fit the device's memory" in record.message for record in caplog.records)


def test_a_device_without_memory_for_the_smallest_tile_is_the_users_to_know() -> None:
    with pytest.raises(UserError, match="does not fit the device's memory even in tiles of"):
        probability_of(Predictor([hungry(100)], InferenceConfig()), *pictures((96, 128)))
