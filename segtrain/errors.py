"""The failures that segtrain tells apart: a user's mistake, and faults of the world of four kinds."""


class UserError(Exception):
    """A mistake that the user can mend: one sentence that names the field, file or key, and the fix.

    Jobs print the message without a traceback and exit with code 2.
    """


class TakenOverError(UserError):
    """Another process has begun to write the same folder, later; the message names the folder, and this one ends."""


class StorageError(OSError):
    """A fault of storage that outlived its retries. The message names the URL and what was tried."""


class NoSpaceError(StorageError):
    """A disk or a quota that is full, or a file that may not grow: another attempt finds no more room."""


class ShortFileError(StorageError):
    """A file that ends before the bytes that were asked for: no other attempt makes it longer."""


class ConflictError(Exception):
    """A file that is no longer the version it was when it was read; the message names the URL."""


class DataError(Exception):
    """Stored bytes that are not what the manifest promises. The message names shard, row group and id."""


class RunError(Exception):
    """A run that lost its workers more often than it may. The message says how to go on."""
