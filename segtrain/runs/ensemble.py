"""`ensemble.json`, which makes one network of the runs of all folds: which folders its members are."""

from segtrain.errors import UserError
from segtrain.runs.run_folder import RunFolder
from segtrain.storage.files import Storage
from segtrain.storage.ids import join_inside
from segtrain.storage.json_text import read_json

FORMAT_VERSION = 1


def members_of(folder: str, storage: Storage) -> list[str] | None:
    """The folders of the runs that the ensemble in `folder` is made of, all below it; None where there is none.

    Raises UserError for a file that `folds=all` has not written, and for one that names a folder elsewhere: whoever
    made it would choose what is loaded.
    """
    url = RunFolder(folder).ensemble
    try:
        entry = read_json(storage.read_bytes(url))
        version, names = entry["format_version"], entry["members"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("members are no names")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{url} is not what folds=all writes; train the folds again") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{url} has format version {version}; this segtrain reads version {FORMAT_VERSION}")
    if not names:
        raise UserError(f"{url} names no member; train with folds=all")
    try:
        return [join_inside(folder, name) for name in names]
    except UserError as error:
        raise UserError(f"{url} names a member that is not below it: {error}") from None
