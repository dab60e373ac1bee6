"""Where things lie in the repository."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
JOBS = REPOSITORY / "jobs"
EARLIER_VERSION = REPOSITORY / "tests" / "earlier_version" / "segtrain-e885e46.tar.xz"
"""What segtrain e885e46 left: a source, a data set, and runs; `make.py` beside it made it."""
STORAGE_HOOK = REPOSITORY / "tests" / "support" / "storage_hook"
"""On PYTHONPATH, it writes down what a process writes."""
