"""What storage does wrong while a run reads: it passes without a trace in the weights, or ends with a plain error."""

from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from segtrain.config import Recipe, override
from segtrain.config.batch_split import batch_split
from segtrain.dataset.data_set import read_data_set
from segtrain.dataset.manifest import read_manifest
from segtrain.errors import DataError, StorageError
from segtrain.pipeline.sample_order import sample_order
from segtrain.pipeline.worker_data import TrainingData
from segtrain.runs.status import Driver, Progress, World
from segtrain.storage.files import Storage, join
from segtrain.training.loop import train
from segtrain.training.run import Run
from tests.support.fault_proxy import KINDS, Fault, FaultProxy

DEADLINE_S = 4.0
"""Of a run that is to end by it; opening the data set has to fit too."""


def copy_set(root: str, folder: str) -> None:
    """Copy a data set as it is, to S3 or elsewhere."""
    storage, manifest = Storage(), read_manifest(Storage(), root)
    for path in ("manifest.json", manifest.index.path, *(shard.path for shard in manifest.shards)):
        storage.write_file(join(folder, path), Path(root) / path)


@pytest.fixture
def on_s3(tiny_set, s3_root: str, recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """A recipe on a copy of the tiny set in S3, read anew each epoch."""
    copy_set(tiny_set.root, s3_root)

    def make(*settings: str) -> Recipe:
        return recipe(f"data.root={s3_root}", "data.cache=off", *settings)

    return make


def through(proxy: FaultProxy, recipe: Recipe, *settings: str) -> Recipe:
    return override(recipe, [f"storage.endpoint_url={proxy.endpoint}", *settings])


def test_a_run_through_every_fault_ends_with_the_weights_of_one_without(
    on_s3: Callable[..., Recipe], fault_proxy: FaultProxy, run_folder
) -> None:
    plain = on_s3("run.name=plain", "train.deterministic=true", "train.epochs=3", "data.read_ahead_bytes=1")
    train(plain, World())
    faults = iter([Fault(kind, match="part-", times=2) for kind in KINDS])

    def disturb(progress: Progress) -> None:
        if progress.phase in ("starting", "training") and (fault := next(faults, None)):
            fault_proxy.inject(fault)

    disturbed = through(fault_proxy, plain, "run.name=disturbed", "data.lanes=4", "storage.timeout_s=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segtrain.training.clock.TELL_EVERY_S", 0.0)
        patch.setattr(
            "segtrain.training.unread.MOST_STEPS", 1
        )  # one fault a step, not one for each result that is read
        train(disturbed, World(), Driver(disturb))
    assert {kind for kind, times in fault_proxy.injected.items() if times} == set(KINDS)
    expected, found = (run_folder(Path(each.run.folder)) for each in (plain, disturbed))
    for name, values in expected.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], values, err_msg=name)
    epochs = found.lines("epoch")
    assert sum(line["left_out"] for line in epochs) == 0
    assert sum(line["downloaded_again"] for line in epochs) >= 1  # the flipped bits
    assert sum(line["retries"] for line in epochs) >= 5
    assert sum(line["downloads"] for line in expected.lines("epoch")) > 0


def test_a_worker_reads_manifest_and_index_once(on_s3: Callable[..., Recipe], fault_proxy: FaultProxy) -> None:
    with Run(through(fault_proxy, on_s3()), World()):
        paths = [request.path for request in fault_proxy.requests if request.method == "GET"]
    assert sum("manifest" in path for path in paths) == 1
    assert sum("index" in path for path in paths) == 1


def opened(recipe: Recipe) -> TrainingData:
    storage = Storage(recipe.storage)
    data_set = read_data_set(storage, recipe.data)
    lanes = sample_order(recipe, data_set.manifest).lanes
    split = batch_split(recipe.train.global_batch_size, lanes, 1, 1, None)
    return TrainingData(recipe, data_set, storage, World(), split)


# The others, alike in what a client sees of them, among the slow ones: 7 s each.
OTHERS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("reset", "truncate_fin")]


@pytest.mark.parametrize("kind", ["slow_down", "truncate_rst", "stall", *OTHERS])
def test_a_fault_without_end_is_a_plain_error_within_the_deadline(
    on_s3: Callable[..., Recipe], fault_proxy: FaultProxy, kind: str
) -> None:
    recipe = through(fault_proxy, on_s3(), "storage.timeout_s=0.5", f"storage.deadline_s={DEADLINE_S}")
    with closing(opened(recipe)) as data:
        fault_proxy.inject(Fault(kind, match="part-", times=None))
        named = rf"{recipe.data.root}/fold=\d/part-[-\w]+\.parquet: .*; tried for {DEADLINE_S:g} s"
        with pytest.raises(StorageError, match=named):
            next(data.batches(0, 0))  # without a deadline it never ends


def test_bits_that_flip_at_every_download_stop_the_run_and_name_the_shard(
    on_s3: Callable[..., Recipe], fault_proxy: FaultProxy
) -> None:
    recipe = through(fault_proxy, on_s3())
    fault_proxy.inject(Fault("flip", match="part-", times=None))
    named = r"\d+ of 16 training pictures are damaged and at most 1 may be .*: fold=\d/part-\S+, row group \d+, id \S+"
    with pytest.raises(DataError, match=named):
        train(recipe, World())


def test_a_few_damaged_pictures_are_left_out_and_counted(
    tiny_set, recipe: Callable[..., Recipe], run_folder, tmp_path: Path
) -> None:
    copy_set(tiny_set.root, str(tmp_path / "set"))
    manifest = read_manifest(Storage(), tiny_set.root)
    shard = next(shard for shard in manifest.shards if shard.fold == 1)
    path = tmp_path / "set" / shard.path
    damaged = bytearray(path.read_bytes())
    place = damaged.index(b"IEND")  # the end of some picture's PNG
    damaged[place] ^= 1
    path.write_bytes(damaged)
    settings = recipe(f"data.root={tmp_path / 'set'}")
    train(settings, World())
    for line in run_folder(Path(settings.run.folder)).lines("epoch"):
        assert (line["left_out"], line["samples"]) == (1, 15)
    with closing(opened(settings)) as data:
        assert sum(len(batch.ids) for batch in islice(data.batches(0, 0), 4)) == 15
