"""What one process makes of its share of a fold; a real network, no Ray."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.config import Recipe, override
from segtrain.dataset.manifest import read_index, read_manifest
from segtrain.errors import UserError
from segtrain.inference.predictor import Predictor
from segtrain.inference.stored_networks import read_networks
from segtrain.metrics import boundary, dice, hard_counts
from segtrain.score_table import BOUNDARY, HARD, SOFT
from segtrain.scoring.fold_scores import ScoredPictures, ScoringTask
from segtrain.scoring.score_worker import Scorer
from segtrain.storage.files import Storage
from tests.support.labelled import LabelledSet, write_run, write_set
from tests.support.networks import load_members, probability_of

IDS = [f"p{number:02d}" for number in range(12)]


@pytest.fixture(scope="module")
def run(labelled: LabelledSet, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_run(tmp_path_factory.mktemp("runs") / "run", labelled.root, best_threshold=0.375)


def tasks_of(root: str) -> list[ScoringTask]:
    """All pictures of a data set."""
    index = read_index(Storage(), root, read_manifest(Storage(), root)).to_pylist()
    tasks: dict[tuple[int, int], list[int]] = {}
    for number, entry in enumerate(index):
        tasks.setdefault((entry["shard"], entry["row_group"]), []).append(number)
    return [
        ScoringTask(*place, tuple(range(len(numbers))), tuple(index[number]["id"] for number in numbers), numbers[0])
        for place, numbers in tasks.items()
    ]


def score(run: str, root: str, *settings: str) -> list[ScoredPictures]:
    """Everything, side by side as in an actor."""
    recipe = override(Recipe(), [f"data.root={root}", "inference.batch_size=2", *settings])
    scorer = Scorer(recipe, read_networks(run, Storage()), read_manifest(Storage(), root))
    try:
        with ThreadPoolExecutor(3) as threads:
            return list(threads.map(scorer, tasks_of(root)))
    finally:
        scorer.close()


def test_each_picture_is_compared_with_its_own_mask_at_its_own_size(labelled: LabelledSet, run: str) -> None:
    predictor = Predictor(load_members(run, Storage()), Recipe().inference)
    found = score(run, labelled.root)
    ids = [name for task in tasks_of(labelled.root) for name in task.ids]
    counts = {number: row for scored in found for number, row in scored.counts.items()}
    assert sorted(ids) == IDS
    assert list(counts) == list(range(12))
    for name, each in zip(ids, counts.values(), strict=True):
        truth = labelled.truth(name)
        image = np.asarray(Image.open(labelled.masks.parent / "images" / f"{name}.png"))
        probability = probability_of(predictor, image)
        predicted = probability >= 0.375
        assert each[HARD].tolist() == hard_counts(truth, predicted).tolist()
        assert 0.0 < dice(each[HARD]) < 1.0
        assert each[BOUNDARY].tolist() == hard_counts(boundary(truth, 5), boundary(predicted, 5)).tolist()
        np.testing.assert_allclose(each[SOFT][0], probability[truth].sum(dtype=float), rtol=1e-6)
    assert {(scored.threshold, scored.digest) for scored in found} == {(0.375, predictor.digest)}
    assert sum(scored.bytes for scored in found) == sum(
        path.stat().st_size for path in (labelled.masks.parent / "images").iterdir()
    )


def test_the_worst_pictures_are_drawn_and_no_more_than_that_asks_for(labelled: LabelledSet, run: str) -> None:
    found = score(run, labelled.root, "evaluation.worst=2")
    counts = sorted((dice(row[HARD]), number) for scored in found for number, row in scored.counts.items())
    panels = {number: data for scored in found for number, data in scored.panels.items()}
    assert panels.keys() >= {number for _, number in counts[:2]}
    assert len(panels) < 12
    for data in panels.values():
        Image.open(io.BytesIO(data)).verify()
    assert not any(scored.panels for scored in score(run, labelled.root, "evaluation.worst=0"))


def test_a_picture_that_is_damaged_in_storage_is_named_or_left_out_if_asked(run: str, tmp_path: Path) -> None:
    labelled = write_set(tmp_path)
    image = (labelled.masks.parent / "images" / "p03.png").read_bytes()
    (shard,) = (path for path in Path(labelled.root).rglob("*.parquet") if image in path.read_bytes())
    shard.write_bytes(shard.read_bytes().replace(image, image[:-1] + b"x"))
    with pytest.raises(UserError, match=r"^picture p03 cannot be read: its bytes in storage are damaged"):
        score(run, labelled.root)
    found = score(run, labelled.root, "inference.skip_unreadable=true")
    unreadable = {name: reason for scored in found for name, reason in scored.unreadable.items()}
    assert unreadable == {"p03": "its bytes in storage are damaged"}
    assert sum(len(scored.counts) for scored in found) == 11
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("segtrain-host")]
