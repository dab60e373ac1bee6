"""Any folder of small pictures becomes a data set that holds exactly them, or an error that names what is wrong."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import prepare
from segtrain.config import StorageConfig
from segtrain.dataset.manifest import MANIFEST_NAME, read_index, read_manifest
from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.shards import unpack_mask
from segtrain.dataset.verify import verify
from segtrain.storage.files import Storage
from tests.support.drawn_pictures import Drawn, meaning, pairs
from tests.support.judging import FEW, MANY, Sandbox, bounded_memory, cases, ends_well, sandbox

SETTINGS = (
    "prepare.folds=2", "prepare.folds=3", "prepare.folds=1", "prepare.folds=x", "prepare.min_row_groups=1",
    "prepare.seed=7", "prepare.shard_bytes=1024", "prepare.row_group_bytes=1024", "prepare.allow_rejected=1",
    "prepare.allow_rejected=9", "source.group_regex=^[^_]+", "source.group_regex=(x)?", "source.group_regex=[",
    "source.group_regex=[0-9]+", "source.group_run=2", "source.group_csv=groups.csv", "source.group_column=g",
    "source.images=pictures", "source.masks=images", "source.kind=carvana", "source.path=nowhere",
    "prepare.seed=1:30", "prepare.nothing=1",
)  # fmt: skip
GROUPS = (
    b"id,g\na,x\nb,x\nc,y\n", b"id,g\r\na,x\r\n", b"id,g\ra,x\rb,y\r", b"id,g\na,x\na,y\n", b"g\nx\n", b"\xff\xfe",
    b"", b"id,g\na\n", b'id,g\n"a,x\n', b"id,g\na," + b"x" * 140_000 + b"\n", b"\xef\xbb\xbfid,g\na,x\nb,y\nc,z\n",
    b"id;g\na;x\n",
)  # fmt: skip
EXTRAS = ("nothing", "nothing", "nothing", "folder", "hidden", "pipe", "link", "text")
storage = Storage(StorageConfig())


def add_extra(raw: Path, extra: str) -> None:
    images = raw / "images"
    images.mkdir(exist_ok=True)
    if extra == "folder":
        (images / "more").mkdir()
    elif extra == "hidden":
        (images / ".DS_Store").write_bytes(b"\0")
    elif extra == "pipe":
        os.mkfifo(images / "pipe.png")
    elif extra == "link":
        (images / "link.png").symlink_to("nowhere.png")
    elif extra == "text":
        (images / "notes.txt").write_text("notes")


def check(box: Sandbox, settings: Sequence[str]) -> None:
    dest = str(box.out / "set")
    command = [f"source.path={box.raw}", "prepare.folds=2", *settings]
    asked = Namespace(source="folder", dest=dest, overrides=command)
    keys = [setting.partition("=")[0] for setting in settings]
    failed = ends_well(lambda: prepare.run(asked), *keys, str(box.root), "source.", "prepare.")
    if failed is not None:
        assert not (box.out / "set" / MANIFEST_NAME).exists(), "nothing is half-made"
        return
    manifest = read_manifest(storage, dest)
    assert verify(storage, dest, manifest, 5.0, parallel=False) == []
    images = {path.stem: path for path in (box.raw / "images").iterdir() if not path.name.startswith(".")}
    masks = {path.stem: path for path in (box.raw / "masks").iterdir()}
    rejected = (box.out / "set" / "rejected.csv").exists()
    ids = read_index(storage, dest, manifest)["id"].to_pylist()
    assert sorted(ids) == sorted(images) or (rejected and set(ids) < set(images))
    reader = RowGroupReader(manifest, storage, dest)
    for shard, facts in enumerate(manifest.shards):
        for number in range(len(facts.row_groups)):
            for row in reader.read(shard, number):
                assert row is not None
                assert row.image == images[row.id].read_bytes()
                assert row.mask is not None
                stored = unpack_mask(row.mask, row.height, row.width)
                np.testing.assert_array_equal(stored, meaning(masks[row.id]), err_msg=f"the mask of {row.id}")

    before = (box.out / "set" / MANIFEST_NAME).read_bytes()
    assert ends_well(lambda: prepare.run(asked), "prepare.") is None
    again = read_manifest(storage, dest)
    assert again.fingerprint == manifest.fingerprint
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in manifest.shards]
    assert before, "prepare twice gives the same bytes"


def run_case(drawn: Sequence[Drawn], settings: Sequence[str], groups: bytes, extra: str) -> None:
    with sandbox() as box, bounded_memory():
        add_extra(box.raw, extra)
        (box.raw / "masks").mkdir(exist_ok=True)
        for pair in drawn:
            pair.write(box.raw)
        (box.raw / "groups.csv").write_bytes(groups)
        check(box, settings)


settings = st.lists(st.sampled_from(SETTINGS), max_size=3, unique=True)
drawn_cases = given(drawn=pairs, settings=settings, groups=st.sampled_from(GROUPS), extra=st.sampled_from(EXTRAS))


@cases(60, FEW)
@drawn_cases
def test_any_folder_becomes_its_own_data_set_or_an_error_that_names_what_is_wrong(
    drawn: list[Drawn], settings: list[str], groups: bytes, extra: str
) -> None:
    run_case(drawn, settings, groups, extra)


@pytest.mark.slow
@cases(60, MANY)
@drawn_cases
def test_ten_times_as_many_folders(drawn: list[Drawn], settings: list[str], groups: bytes, extra: str) -> None:
    run_case(drawn, settings, groups, extra)
