"""Rows become logits in order, a batch at a time, and what cannot be decoded is named."""

import io
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from segtrain.config import InferenceConfig
from segtrain.dataset.salvage import LostRow
from segtrain.dataset.shards import Row
from segtrain.errors import UserError
from segtrain.inference.load_networks import Member
from segtrain.inference.predict_rows import RowPredictor
from segtrain.inference.predictor import Logits, Predictor, Prepared


def row(name: str, level: int, image: bytes | None = None) -> Row:
    """A picture of 4x6 pixels of one grey level."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), level, np.uint8)).save(buffer, "PNG")
    return Row(name, "g", 4, 6, 1, 0.0, buffer.getvalue() if image is None else image, 0, None, None)


@pytest.fixture
def host() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def brightness(pictures: tf.Tensor) -> tf.Tensor:
    return pictures[..., :1]


def forward(host: ThreadPoolExecutor, **settings: object) -> RowPredictor:
    inference = InferenceConfig(**settings)  # type: ignore[arg-type]
    return RowPredictor(Predictor([Member("a network", brightness, "0" * 32, multiple=1)], inference), inference, host)


def level(logits: Logits) -> int:
    return round(float(logits.maps[0].mean()) * 255)


def test_rows_come_back_in_order_in_batches_with_what_the_network_made_of_them(host: ThreadPoolExecutor) -> None:
    rows = [row(f"p{number}", 10 * number) for number in range(5)]
    batches = list(forward(host, batch_size=2).batches(rows, {}))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert [(each.id, level(logits)) for batch in batches for each, logits in batch] == [
        (f"p{number}", 10 * number) for number in range(5)
    ]


class Waiting(Predictor):
    """Its forward pass ends only when four pictures in all have been decoded."""

    decoded = 0
    change = threading.Condition()

    def prepare(self, *args: Any) -> Prepared:
        prepared = super().prepare(*args)
        with self.change:
            self.decoded += 1
            self.change.notify_all()
        return prepared

    def forward(self, prepared: Sequence[Prepared]) -> list[Logits]:
        with self.change:
            assert self.change.wait_for(lambda: self.decoded == 4, timeout=300)
        return super().forward(prepared)


def test_the_next_batch_is_decoded_while_the_device_has_one(host: ThreadPoolExecutor) -> None:
    inference = InferenceConfig(batch_size=2)
    predictor = Waiting([Member("a network", brightness, "0" * 32, multiple=1)], inference)
    batches = list(
        RowPredictor(predictor, inference, host).batches([row(str(grey), grey) for grey in (9, 8, 7, 6)], {})
    )
    assert [[level(logits) for _, logits in batch] for batch in batches] == [[9, 8], [7, 6]]


def test_what_cannot_be_decoded_is_named_or_left_out_if_asked(host: ThreadPoolExecutor) -> None:
    rows = [row("a", 50), row("b", 0, b"no picture"), LostRow("c", "it is gone"), row("d", 70)]
    with pytest.raises(
        UserError, match=r"^picture b cannot be read: the image cannot be decoded.*skip_unreadable=true"
    ):
        list(forward(host).batches(rows, {}))
    unreadable: dict[str, str] = {}
    (batch,) = forward(host, skip_unreadable=True).batches(rows, unreadable)
    assert [(each.id, level(logits)) for each, logits in batch] == [("a", 50), ("d", 70)]
    assert unreadable.keys() == {"b", "c"}
    assert unreadable["c"] == "it is gone"
    assert list(forward(host, skip_unreadable=True).batches(rows[1:3], {})) == [[]]
    assert list(forward(host).batches([], {})) == []
