"""Settings of what comes after training: predicting, scoring, and what is written."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from segtrain.config.settings import Count, Fraction, Section


class InferenceConfig(Section):
    """How a trained network, or the average of several, is applied to pictures."""

    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """A pixel is object where its probability is at least this; what the network was found to do best with, where
    nothing is given."""
    flip: bool = False
    """Test-time augmentation: the average over the picture and its mirror image."""
    tile_height: Annotated[int, Field(ge=32)] | None = None
    tile_width: Annotated[int, Field(ge=32)] | None = None
    """Pictures larger than a tile are predicted in tiles; whole where nothing is given, unless `cluster.device_bytes`
    is too little for that."""
    overlap: Fraction = 0.25
    """At least this part of a tile's height and width lies in the tile before it."""
    batch_size: Count = 8
    """Pictures, or tiles, that the network is given at once."""
    workers: Count | None = None
    """Processes that predict, at most; as many as the cluster holds where nothing is given. Each has
    `cluster.cpus_per_worker`, or, with `cluster.gpus_per_worker`, one GPU and its share of the CPUs."""
    folds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] | None = None
    """Predict these folds of a data set; all of them where nothing is given."""
    overlays: bool = False
    """Write each picture with its mask drawn over it."""
    probabilities: bool = False
    """Write probabilities as 8-bit PNG."""
    skip_unreadable: bool = False
    """Leave out pictures that cannot be decoded, and list them, instead of stopping."""
    trust_saved_model: bool = False
    """Load SavedModels. A SavedModel is a program: whoever made it may read, write and send whatever you may. Only what
    is typed with the command counts; a run's own recipe cannot vouch for itself."""

    @model_validator(mode="after")
    def _whole_tile(self) -> Self:
        if (self.tile_height is None) != (self.tile_width is None):
            raise ValueError("tile_height and tile_width come together; give both or neither")
        return self
