"""A data set as a job knows it: its manifest and its index, each of which is read once."""

from dataclasses import dataclass

import pyarrow as pa

from segtrain.config import DataConfig
from segtrain.dataset.manifest import Manifest, read_index, read_manifest
from segtrain.errors import UserError
from segtrain.storage.files import Storage


@dataclass(frozen=True, eq=False)
class DataSet:
    """One version of a data set, without its pictures."""

    root: str
    manifest: Manifest
    index: pa.Table
    """One row a picture (`INDEX_SCHEMA`)."""


def root_of(config: DataConfig) -> str:
    """Where the data set lies. Raises `UserError` where the recipe does not say."""
    if config.root is None:
        raise UserError("data.root is not set; give the folder or s3:// URL that jobs/prepare.py wrote")
    return config.root


def read_data_set(storage: Storage, config: DataConfig) -> DataSet:
    """The version `data.version` of the data set, or the newest one where the recipe names none.

    Raises `UserError` where there is no data set, and what `read_manifest` and `read_index` raise.
    """
    root = root_of(config)
    manifest = read_manifest(storage, root, config.version)
    return DataSet(root, manifest, read_index(storage, root, manifest))
