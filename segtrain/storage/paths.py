"""Local paths that a job hands to workers, or writes its results to."""

from pathlib import Path

from segtrain.errors import UserError
from segtrain.storage.files import is_remote, local_path


def absolute_path(path: str) -> str:
    """A local path made absolute; a URL as it is."""
    return path if is_remote(path) else str(local_path(path).absolute())


def absolute_output(field: str, path: str) -> str:
    """The absolute path of what a job writes; UserError names the field where it would not outlive the job."""
    found = absolute_path(path)
    if not is_remote(found) and "runtime_resources" in Path(found).parts:
        raise UserError(
            f"{field}: '{path}' would be deleted with this job's copy of the working folder; "
            f"give an absolute path or an s3:// URL"
        )
    return found
