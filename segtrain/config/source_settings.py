"""Settings of the sources that `jobs/prepare.py` makes data sets from."""

from typing import Annotated, Literal, Self

from pydantic import Field, Tag, model_validator

from segtrain.config.section import Count, Section, Seed, by_kind
from segtrain.config.texts import Location, Text


class CarvanaSource(Section):
    """Kaggle's folders: `train/<car>_<view>.jpg` with `train_masks/<car>_<view>_mask.gif` or a CSV of run lengths."""

    kind: Literal["carvana"] = "carvana"
    """Selects this source."""
    path: Location | None = None
    """Folder that holds the pictures' folder and the masks."""
    images: Location = "train"
    """The pictures' folder in `path`: `train`, or `train_hq` for the high-quality ones."""
    masks: Literal["gif", "csv"] = "gif"
    """Where masks come from: `gif` for `train_masks/*.gif`, `csv` for `train_masks.csv`."""


class FolderSource(Section):
    """A folder of images and a folder of masks, matched by file stem."""

    kind: Literal["folder"] = "folder"
    """Selects this source."""
    path: Location | None = None
    """Folder that holds the two folders below."""
    images: Location = "images"
    """The images' folder in `path`."""
    masks: Location = "masks"
    """The masks' folder in `path`."""
    group_regex: Text | None = None
    """Regular expression to search in the stem. Its first group, or the whole match, names the picture's group."""
    group_csv: Location | None = None
    """CSV file, relative to `path`, with a column `id` that holds the stem and one that names the group."""
    group_column: Text | None = None
    """Column of `group_csv` that names the group."""
    group_run: Count | None = None
    """Number of neighbouring stems, in sorted order, that form one group: for frames of one walk or one scan."""

    @model_validator(mode="after")
    def _one_grouping(self) -> Self:
        given = [name for name in ("group_regex", "group_csv", "group_run") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(f'source.{name}' for name in given)} are set; keep one of them")
        if (self.group_csv is None) != (self.group_column is None):
            raise ValueError("source.group_csv and source.group_column go together; set both or neither")
        return self


class KaggleSource(Section):
    """A competition's archives, downloaded with the `kaggle` client, unpacked, and read as `carvana`."""

    kind: Literal["kaggle"] = "kaggle"
    """Selects this source."""
    competition: Text = "carvana-image-masking-challenge"
    """Last part of the competition's address at Kaggle."""
    files: Annotated[tuple[Text, ...], Field(min_length=1, strict=False)] = ("train_hq.zip", "train_masks.zip")
    """Files of the competition to download, one after the other."""
    path: Location | None = None
    """Local folder for the archives and the pictures. It stays, so nothing is downloaded twice."""
    masks: Literal["gif", "csv"] = "gif"
    """Where masks come from, as in `carvana`."""


class SyntheticSource(Section):
    """Drawn cars in Kaggle's layout, the same for the same seed; for demos, tests and benchmarks."""

    kind: Literal["synthetic"] = "synthetic"
    """Selects this source."""
    path: Location | None = None
    """Folder to draw into, which is then read as `carvana`. By default a temporary one."""
    cars: Count = 16
    """Number of cars. Each is a group."""
    views: Annotated[int, Field(ge=1, le=99)] = 16
    """Pictures of each car."""
    height: Annotated[int, Field(ge=32)] = 1280
    """Height of the pictures, in pixels."""
    width: Annotated[int, Field(ge=32)] = 1918
    """Width of the pictures, in pixels."""
    seed: Seed = 0
    """Seed of the drawing."""


Source = Annotated[
    Annotated[CarvanaSource, Tag("carvana")]
    | Annotated[FolderSource, Tag("folder")]
    | Annotated[KaggleSource, Tag("kaggle")]
    | Annotated[SyntheticSource, Tag("synthetic")],
    by_kind("folder"),
]
