"""Thresholds that a run has stored with its best network, as others read them: numbers between 0 and 1."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Score = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Threshold = Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)]


class Curve(BaseModel):
    """Mean hard dice over the validation pictures for each threshold."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    thresholds: Annotated[tuple[Threshold, ...], Field(min_length=1)]
    dice: tuple[Score, ...]
    pictures: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _one_dice_each(self) -> Self:
        if len(self.thresholds) != len(self.dice):
            raise ValueError(f"{len(self.thresholds)} thresholds have {len(self.dice)} dice")
        return self
