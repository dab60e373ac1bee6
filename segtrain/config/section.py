"""What every section of the settings is made of: its base, the usual numbers, and the choice of a kind."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field

MIB = 2**20
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Seconds = Annotated[float, Field(gt=0.0, le=1e9)]
"""At most what every clock that waits for it can count."""
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy, Keras and Optuna all take."""


class Section(BaseModel):
    """A frozen part of the tree. Unknown keys, wrong types and numbers that are not finite are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def by_kind(default: str) -> Discriminator:
    """Tell the members of a union apart by their `kind`; a section that does not say is the default's."""

    def kind_of(value: Any) -> str:
        kind = value.get("kind", default) if isinstance(value, Mapping) else getattr(value, "kind", default)
        return str(kind)

    return Discriminator(kind_of)
