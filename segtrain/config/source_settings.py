"""Settings of the sources that `jobs/prepare.py` makes data sets from."""

from typing import Annotated, Literal, Self

from pydantic import Field, Tag, model_validator

from segtrain.config.settings import Count, Section, Seed, by_kind
from segtrain.config.texts import Location, Text


class CarvanaSource(Section):
    """Kaggle's folders: `train/<car>_<view>.jpg` with `train_masks/<car>_<view>_mask.gif` or a CSV of run lengths."""

    kind: Literal["carvana"] = "carvana"
    path: Location | None = None
    """Folder that holds the pictures' folder and the masks."""
    images: Location = "train"
    """The pictures' folder in `path`: `train`, or `train_hq` for the high-quality ones."""
    masks: Literal["gif", "csv"] = "gif"
    """Take masks from `train_masks/*.gif` or from `train_masks.csv`."""


class FolderSource(Section):
    """`images/` and `masks/`, matched by file stem."""

    kind: Literal["folder"] = "folder"
    path: Location | None = None
    """Folder that holds the two folders below."""
    images: Location = "images"
    masks: Location = "masks"
    group_regex: Text | None = None
    """Regular expression searched in the stem; its first group (or the whole match) names the picture's group."""
    group_csv: Location | None = None
    """CSV file with a column `id` (the stem), relative to `path`; `group_column` of it names the group."""
    group_column: Text | None = None
    group_run: Count | None = None
    """So many neighbouring stems, in sorted order, form one group: for frames of one walk or one scan."""

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
    competition: Text = "carvana-image-masking-challenge"
    files: Annotated[tuple[Text, ...], Field(min_length=1, strict=False)] = ("train_hq.zip", "train_masks.zip")
    """Only these are downloaded, one after the other."""
    path: Location | None = None
    """Local folder for the archives and the pictures, kept so that nothing is downloaded twice."""
    masks: Literal["gif", "csv"] = "gif"
    """As in `carvana`."""


class SyntheticSource(Section):
    """Drawn cars in Kaggle's layout, the same for the same seed; for demos, tests and benchmarks."""

    kind: Literal["synthetic"] = "synthetic"
    path: Location | None = None
    """Folder to draw into, read afterwards as `carvana`; a temporary one where nothing is given."""
    cars: Count = 16
    views: Annotated[int, Field(ge=1, le=99)] = 16
    height: Annotated[int, Field(ge=32)] = 1280
    width: Annotated[int, Field(ge=32)] = 1918
    seed: Seed = 0


Source = Annotated[
    Annotated[CarvanaSource, Tag("carvana")]
    | Annotated[FolderSource, Tag("folder")]
    | Annotated[KaggleSource, Tag("kaggle")]
    | Annotated[SyntheticSource, Tag("synthetic")],
    by_kind("folder"),
]
