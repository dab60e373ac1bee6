"""Temporary folders: gone when they are not needed any more, however their process ended."""

import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from segtrain.errors import NoSpaceError, StorageError
from segtrain.storage.files import Storage
from segtrain.storage.scratch import scratch_folder

HOLD = """
import time
from segtrain.storage.scratch import scratch_folder
with scratch_folder("held") as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""
WRITE = """
import sys, time
from pathlib import Path
from segtrain.storage.files import Storage
write_bytes = Path.write_bytes
def half(path, data):
    write_bytes(path, data[:1])
    print(path, flush=True)
    time.sleep(60)
Path.write_bytes = half
Storage().write_bytes(sys.argv[1], b"whole")
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of the test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def started(program: str, *arguments: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that has come to its sleep, and what it has printed."""
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_folder_is_gone_after_its_block(temporary: Path) -> None:
    with scratch_folder("test") as folder:
        (folder / "file").write_text("x")
        assert folder.parent == temporary
    assert list(temporary.iterdir()) == []


def test_a_killed_process_leaves_its_folder_to_the_next_one(temporary: Path) -> None:
    (temporary / "segtrain-cache-0").mkdir()
    (temporary / "segtrain-scratch-file").write_text("no folder")
    process, held = started(HOLD)
    with scratch_folder("other"):
        assert (held / "file").exists(), "its process lives"
    end(process)
    with scratch_folder("other") as folder:
        assert sorted(temporary.iterdir()) == sorted(
            [temporary / "segtrain-cache-0", temporary / "segtrain-scratch-file", folder]
        )


def test_a_disk_that_is_full_is_named_with_the_way_out(temporary: Path) -> None:
    def fill() -> None:
        with scratch_folder("test") as folder, (folder / "file").open("wb", buffering=0) as file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
            file.write(bytes(100))
            file.write(bytes(100))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(NoSpaceError, match=rf"{temporary}, the folder for temporary files: .* in TMPDIR$"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(temporary.iterdir()) == []


def test_no_folder_that_can_be_written_to_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/dev/null/nothing"])
    with pytest.raises(StorageError, match=r"No usable temporary directory .* TMPDIR"):
        scratch_folder("test").__enter__()


def test_a_killed_writer_leaves_a_file_that_is_found_and_one_that_lives_keeps_its_own(tmp_path: Path) -> None:
    process, half = started(WRITE, str(tmp_path / "target"))
    Storage().remove_leftovers(str(tmp_path))
    assert half.exists(), "its writer lives"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    Storage().remove_leftovers(str(tmp_path))
    assert not half.exists()
    Storage().remove_leftovers(str(tmp_path / "nothing"))
