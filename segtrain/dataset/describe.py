"""A data set described in words and numbers, and a few of its pictures."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageOps

from segtrain.dataset.manifest import Manifest, read_index
from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.shards import Row, unpack_mask
from segtrain.dataset.versions import version_label
from segtrain.errors import DataError, UserError, shown
from segtrain.panels import contact_sheet, file_bytes
from segtrain.pictures.image_files import IMAGE_FORMATS, check_header
from segtrain.pictures.pillow_files import BadPairError, decode_whole, open_image
from segtrain.storage.files import Storage

MIB = 2**20


def overview(manifest: Manifest, root: str, versions: Sequence[Manifest] = ()) -> list[str]:
    """Lines for `jobs/data.py inspect`: the manifest in words, and those of `versions` that are others."""
    lengths = [length for shard in manifest.shards for length in shard.row_groups.length]
    total_bytes = sum(shard.bytes for shard in manifest.shards)
    return [
        f"{root}: format {manifest.format_version}, fingerprint {manifest.fingerprint}, "
        f"from {manifest.source}, made {manifest.created}",
        f"{manifest.pictures} pictures in {manifest.groups} groups, {manifest.labelled} with masks, "
        f"foreground {manifest.mean_foreground:.1%}",
        f"{manifest.min_width} to {manifest.max_width} pixels wide, "
        f"{manifest.min_height} to {manifest.max_height} pixels high",
        f"{len(manifest.shards)} shards, {total_bytes / MIB:.1f} MiB, "
        f"{len(lengths)} row groups of at most {max(lengths) / MIB:.2f} MiB",
        "fold  pictures  groups  foreground",
        *(f"{fold.fold:4d}  {fold.pictures:8d}  {fold.groups:6d}  {fold.foreground:10.1%}" for fold in manifest.folds),
        *(f"earlier version {version_label(one)}" for one in versions if one.fingerprint != manifest.fingerprint),
    ]


def statistics(index: pa.Table) -> list[str]:
    """Lines for `jobs/data.py stats`: quantiles over pictures and groups, and the most frequent sizes."""
    columns = {name: index[name].to_numpy() for name in ("height", "width", "foreground")}
    group_sizes = np.unique(index["group"].to_numpy(zero_copy_only=False), return_counts=True)[1]
    lines = [f"{'':20s}{'least':>10s}{'5 %':>10s}{'half':>10s}{'95 %':>10s}{'most':>10s}"]
    for name, values in (*columns.items(), ("pictures in a group", group_sizes)):
        digits = 4 if name == "foreground" else 0
        quantiles = np.quantile(values, [0, 0.05, 0.5, 0.95, 1])
        lines.append(f"{name:20s}" + "".join(f"{value:10.{digits}f}" for value in quantiles))
    empty, full = (int((columns["foreground"] == share).sum()) for share in (0, 1))
    lines.append(f"masks without any object: {empty}; masks that are all object: {full}")
    sizes, counts = np.unique(np.stack([columns["width"], columns["height"]]), axis=1, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:5]
    shown = ", ".join(f"{sizes[0, i]}x{sizes[1, i]} ({counts[i]})" for i in most)
    lines.append(f"{len(counts)} sizes (width x height): {shown}{', ...' if len(counts) > len(most) else ''}")
    return lines


def preview(storage: Storage, root: str, manifest: Manifest, index: pa.Table, count: int) -> Image.Image:
    """A contact sheet of `count` pictures with their masks, evenly over the data set.

    Rows lie in random order, so these are a fair sample of every fold. Raises `UserError` for a `count` below 1 and
    `DataError` for a picture that is damaged.
    """
    if count < 1:
        raise UserError(f"--pictures is {count}; show at least 1")
    reader = RowGroupReader(manifest, storage, root)
    numbers = np.unique(np.linspace(0, index.num_rows - 1, min(count, index.num_rows)).round().astype(int))
    items: list[tuple[NDArray[np.uint8], NDArray[np.uint8] | None, str]] = []
    for place in index.take(pa.array(numbers)).select(["id", "fold", "shard", "row_group", "row"]).to_pylist():
        row = reader.read(place["shard"], place["row_group"])[place["row"]]
        if row is None:
            damage = next(sentence for sentence in reader.quarantined if f", id {shown(place['id'])}: " in sentence)
            raise DataError(f"a picture cannot be shown: {damage}; choose another number or make the data set again")
        mask = None if row.mask is None else unpack_mask(row.mask, row.height, row.width)
        items.append((_pixels(row), mask, f"fold {place['fold']}  {row.id}"))
    return contact_sheet(items)


def _pixels(row: Row) -> NDArray[np.uint8]:
    try:
        if check_header(row.image, row.height * row.width)[:2] != (row.height, row.width):
            raise BadPairError(f"image is not {row.width}x{row.height}, as its row says")
        image = open_image("image", row.image, IMAGE_FORMATS, row.height * row.width)
        decode_whole("image", image, row.image)
    except BadPairError as error:
        raise DataError(
            f"a picture cannot be shown: id {shown(row.id)}: {error}; jobs/data.py verify names all such pictures"
        ) from None
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def write_preview(storage: Storage, root: str, manifest: Manifest, count: int, url: str) -> None:
    """Write `preview` to a PNG file, local or in S3."""
    sheet = preview(storage, root, manifest, read_index(storage, root, manifest), count)
    storage.write_bytes(url, file_bytes(sheet, "PNG"))
