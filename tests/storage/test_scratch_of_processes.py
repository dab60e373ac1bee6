"""What libraries write into the temporary folder goes with the work it is for."""

import tempfile
from pathlib import Path

import pytest

from segtrain.storage.scratch import temporary_files_in_scratch


def test_temporary_files_of_the_block_are_gone_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_files_in_scratch("worker"):
        with tempfile.NamedTemporaryFile(prefix="__autograph_generated_file", delete=False) as file:
            assert Path(file.name).parent.parent == tmp_path
        tempfile.mkdtemp()
    assert list(tmp_path.iterdir()) == []
    assert tempfile.gettempdir() == str(tmp_path)
