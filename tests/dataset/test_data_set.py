"""Where there is no data set, the sentence says how to get one."""

from pathlib import Path

import pytest

from segtrain.config import Recipe, override
from segtrain.dataset.data_set import read_data_set
from segtrain.errors import UserError
from segtrain.storage.files import Storage


def test_a_data_set_must_be_named() -> None:
    with pytest.raises(UserError, match=r"^data.root is not set"):
        read_data_set(Storage(), Recipe().data)


def test_a_folder_without_a_manifest_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest.json in .*jobs/prepare.py"):
        read_data_set(Storage(), override(Recipe(), [f"data.root={tmp_path}"]).data)
