"""`ensemble.json` names folders below its own, or is refused."""

import json
from pathlib import Path

import pytest

from segtrain.errors import UserError
from segtrain.runs.networks import check_networks, members_of, recipes_of
from segtrain.storage.files import Storage


def test_members_are_folders_below_the_ensembles(tmp_path: Path) -> None:
    assert members_of(str(tmp_path), Storage()) is None
    (tmp_path / "ensemble.json").write_text('{"format_version": 1, "members": ["fold-0", "deeper/fold-1"]}')
    assert members_of(str(tmp_path), Storage()) == [f"{tmp_path}/fold-0", f"{tmp_path}/deeper/fold-1"]


@pytest.mark.parametrize(
    "name", ["../../runs/ok", "..", ".", "/etc", "s3://bucket/run", "a/../../b", "a\\b", "a\nb", ""]
)
def test_members_elsewhere_are_refused_wherever_they_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "ensemble.json").write_text(json.dumps({"format_version": 1, "members": ["fold-0", name]}))
    with pytest.raises(UserError, match=r"ensemble\.json names a member that is not below it: ") as caught:
        members_of(str(tmp_path), Storage())
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="names a member"):
        recipes_of(str(tmp_path), Storage())


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", '{"format_version": 1, "members": "ab"}', "[" * 100_000, '{"members": [1]}']
)
def test_what_folds_have_not_written_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "ensemble.json").write_text(text)
    with pytest.raises(UserError, match=r"ensemble\.json is not what folds=all writes; train the folds again"):
        members_of(str(tmp_path), Storage())
    check_networks(str(tmp_path), Storage())  # which only looks whether there is something
