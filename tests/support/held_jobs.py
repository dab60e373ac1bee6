"""Jobs as real processes that can be held at one of their writes, and then killed, stopped or let go."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.places import REPOSITORY, STORAGE_HOOK
from tests.support.storage_hook.sitecustomize import kind_of


@dataclass(frozen=True)
class Write:
    """One write through `Storage`."""

    method: str
    url: str

    @property
    def kind(self) -> str:
        """The same for writes that differ in numbers and digests alone; the hook matches patterns with it."""
        return kind_of(self.method, self.url)


class HeldJob:
    """A job under way. `writes` is what it has written so far; with `hold`, it stops at one of its writes."""

    def __init__(self, arguments: Sequence[object], folder: Path, cwd: Path, **environment: str) -> None:
        """Start `python jobs/<arguments>` in `cwd`, with the hook's files in `folder`, which is made."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        job, *rest = map(str, arguments)
        paths = [str(STORAGE_HOOK), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        self._out = (folder / "out").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "jobs" / f"{job}.py"), *rest],
            cwd=cwd,
            env={**os.environ, "HOOK_FOLDER": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
            | environment,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def writes(self) -> list[Write]:
        """Every write that has begun, in order."""
        path = self._folder / "writes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Write(method, url) for when, method, url, _ in map(json.loads, lines) if when == "before"]

    @property
    def is_held(self) -> bool:
        return (self._folder / "reached").exists()

    def wait_until_held(self, timeout_s: float = 600.0) -> bool:
        """Whether it has come to the write at which it waits; False where it ended before that."""
        end = time.monotonic() + timeout_s
        while not self.is_held:
            if self.process.poll() is not None:
                return self.is_held
            assert time.monotonic() < end, f"not held after {timeout_s:g} s:\n{self.output}"
            time.sleep(0.01)
        return True

    def let_go(self) -> None:
        (self._folder / "go").touch()

    def kill(self) -> None:
        """SIGKILL to the job and all that it has started."""
        for each in family(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM to the job alone."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 600.0) -> int:
        """Its exit code."""
        return self.process.wait(timeout_s)

    @property
    def output(self) -> str:
        """What it has printed so far, stdout and stderr."""
        return (self._folder / "out").read_text()

    def close(self) -> None:
        """Let it go and end it where it has not ended."""
        self.let_go()
        if self.process.poll() is None:
            self.kill()
        self._out.close()


@contextlib.contextmanager
def running(
    *arguments: object,
    folder: Path,
    cwd: Path | None = None,
    hold: str | None = None,
    when: str = "before",
    number: int = 1,
    **environment: str,
) -> Iterator[HeldJob]:
    """A job inside the block; with `hold`, it waits at its write of that `number` whose URL, or kind, it finds."""
    folder.mkdir(parents=True, exist_ok=True)
    if hold is not None:
        (folder / "hold").write_text(json.dumps({"when": when, "pattern": hold, "number": number}))
    job = HeldJob(arguments, folder, cwd or folder, **environment)
    try:
        yield job
    finally:
        job.close()


def family(pid: int) -> list[int]:
    """A process and all that it has started and what these have, from the parents in /proc."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found
