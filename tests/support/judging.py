"""What every case must hold, whatever was drawn: how it may end, what it may leave, and how much memory it may take."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings

from segtrain.errors import DataError, RunError, StorageError, UserError

OWN_ERRORS = (UserError, StorageError, DataError, RunError)
MIB = 2**20
LONGEST_MESSAGE = 3000
MOST_MIB = 300
"""Above what the process held before; sound input of this size takes a few MiB."""

FEW, MANY = 1, 10
"""How often the number of cases of `make test` is drawn there and in `make test-all`."""


def cases(count: int, times: int) -> settings:
    """Settings of a test that draws `count` x `times` cases: `FEW` are the same each time, `MANY` others each time."""
    return settings(
        max_examples=count * times,
        derandomize=times == FEW,
        database=None,
        phases=[Phase.generate],  # a smaller case of a report that fails takes minutes to find
        suppress_health_check=list(HealthCheck),
    )


@dataclass(frozen=True)
class Sandbox:
    """Folders for one case; nothing may be written beside them, and into `raw` and `cwd` nothing at all."""

    root: Path

    @property
    def raw(self) -> Path:
        """What the job reads."""
        return self.root / "raw"

    @property
    def out(self) -> Path:
        """Where the job writes."""
        return self.root / "out"


@contextlib.contextmanager
def sandbox() -> Iterator[Sandbox]:
    """A sandbox that is the working folder inside the block; afterwards it is searched for what does not belong."""
    before, temporary = Path.cwd(), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        box = Sandbox(Path(folder))
        for name in ("raw", "out", "cwd", "tmp"):
            (box.root / name).mkdir()
        os.chdir(box.root / "cwd")
        tempfile.tempdir = str(box.root / "tmp")
        try:
            yield box
        finally:
            os.chdir(before)
            tempfile.tempdir = temporary
        assert sorted(os.listdir(box.root)) == ["cwd", "out", "raw", "tmp"], "something was written beside the folders"
        assert os.listdir(box.root / "cwd") == [], "something was written into the working folder"
        assert os.listdir(box.root / "tmp") == [], "something was left in the temporary folder"
        stray = [name for _, _, names in os.walk(box.out) for name in names if name.endswith(".segtrain-tmp")]
        assert stray == [], "unfinished files were left"


def ends_well(call: Callable[[], object], *names: str) -> str | None:
    """Call; None where it returns, or the message of one of segtrain's own errors, which holds one of `names`.

    Any other exception passes through and fails the test.
    """
    try:
        call()
    except OWN_ERRORS as error:
        message = str(error)
        assert message.strip(), "an error without words"
        assert "\n" not in message.strip(), f"more than one line: {message!r}"
        assert "Traceback" not in message
        assert len(message) < LONGEST_MESSAGE, f"{len(message)} characters are no sentence: {message[:300]!r}"
        assert any(name in message for name in names), f"names none of {names}: {message!r}"
        return message
    return None


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Fail where the block has held more at any moment than `MOST_MIB` above what was there before."""
    with contextlib.suppress(PermissionError):  # then the peak of an earlier case may hide this one's
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (man 5 proc)
    before_bytes = _peak_bytes()
    yield
    grown_mib = (_peak_bytes() - before_bytes) / MIB
    assert grown_mib < MOST_MIB, f"{grown_mib:.0f} MiB more"


def _peak_bytes() -> int:
    """The most memory that this process has held (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
