"""Settings of what comes after training: predicting, scoring, and what is written."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from segtrain.config.section import Count, Fraction, Section


class InferenceConfig(Section):
    """How a trained network, or the average of several, is applied to pictures."""

    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Probability from which a pixel counts as object. By default the one that scored best on the validation fold."""
    flip: bool = False
    """Average the prediction over the picture and its mirror image (test-time augmentation)."""
    tile_height: Annotated[int, Field(ge=32)] | None = None
    """Height of a tile, in pixels. It goes with `tile_width`."""
    tile_width: Annotated[int, Field(ge=32)] | None = None
    """Width of a tile, in pixels. Larger pictures are predicted in tiles; by default only where `cluster.device_bytes`
    is too little for a whole one."""
    overlap: Fraction = 0.25
    """Least share of a tile's height and width that lies in the tile before it."""
    batch_size: Count = 8
    """Pictures or tiles that the network is given at once."""
    workers: Count | None = None
    """Most processes that predict. By default as many as the cluster holds. Each has `cluster.cpus_per_worker`, or with
    `cluster.gpus_per_worker` one GPU and its share of the CPUs."""
    folds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] | None = None
    """Folds of a data set to predict. By default all of them."""
    overlays: bool = False
    """Write each picture with its mask drawn over it."""
    probabilities: bool = False
    """Write probabilities as 8-bit PNG files."""
    skip_unreadable: bool = False
    """Leave out pictures that cannot be decoded, and list them, instead of stopping."""
    trust_saved_model: bool = False
    """Load SavedModels. A SavedModel is a program that may do whatever you may. Only the command line counts:
    a run's own recipe cannot vouch for itself."""

    @model_validator(mode="after")
    def _whole_tile(self) -> Self:
        if (self.tile_height is None) != (self.tile_width is None):
            raise ValueError("tile_height and tile_width come together; give both or neither")
        return self
