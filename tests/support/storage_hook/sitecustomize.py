"""Notes, and on demand holds, every write of a job and of all the processes that it starts.

Python imports this module as it starts where its folder is on PYTHONPATH; `tests/support/held_jobs.py` puts it there.
It acts only where HOOK_FOLDER names a folder. It waits for `segtrain.storage.files` to be imported and wraps what
writes there:

- each write is a line of `writes` in the folder: before or after, method, URL;
- where the folder has a file `hold` (JSON: `when`, `pattern`, `number`), the process that comes to the write of that
  number whose URL or kind the pattern finds makes `reached` and waits until there is a file `go`. One is held, once.
"""

import importlib.abc
import importlib.machinery
import json
import os
import re
import sys
import time
from pathlib import Path

MODULE, CLASS = "segtrain.storage.files", "Storage"
METHODS = ("write_bytes", "write_if_version", "write_file", "delete")


def kind_of(method, url):
    """The same text for writes that differ in numbers and digests alone: `write_file fold=#/part-#-#.parquet`."""
    return f"{method} {re.sub('[0-9a-f]*[0-9][0-9a-f]*', '#', '/'.join(url.split('/')[-2:]))}"


class _Hook:
    def __init__(self, folder):
        self.folder = folder

    def at(self, when, method, url):
        with (self.folder / "writes").open("a") as log:  # O_APPEND: lines of several processes do not mix
            log.write(json.dumps([when, method, url, os.getpid()]) + "\n")
        hold = self.folder / "hold"
        if not hold.exists() or (self.folder / "reached").exists():
            return
        wanted = json.loads(hold.read_text())
        if when != wanted["when"] or not any(
            re.search(wanted["pattern"], text) for text in (url, kind_of(method, url))
        ):
            return
        with (self.folder / "matched").open("a") as matched:
            matched.write("x")
        if (self.folder / "matched").stat().st_size < wanted["number"]:
            return
        try:
            os.close(os.open(self.folder / "reached", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return  # another process is held
        while not (self.folder / "go").exists():
            time.sleep(0.01)

    def wrap(self, kind):
        for name in METHODS:
            setattr(kind, name, self._wrapped(name, getattr(kind, name)))

    def _wrapped(self, name, method):
        def write(storage, url, *rest, **named):
            self.at("before", name, url)
            made = method(storage, url, *rest, **named)
            self.at("after", name, url)
            return made

        return write


class _Finder(importlib.abc.MetaPathFinder):
    """Finds `segtrain.storage.files` as everybody does, and lets the hook wrap its class once it is loaded."""

    def __init__(self, hook):
        self.hook = hook

    def find_spec(self, name, path, target=None):
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute, hook = spec.loader.exec_module, self.hook

        def exec_module(module):
            execute(module)
            hook.wrap(getattr(module, CLASS))

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("HOOK_FOLDER"):
    sys.meta_path.insert(0, _Finder(_Hook(Path(os.environ["HOOK_FOLDER"]))))
