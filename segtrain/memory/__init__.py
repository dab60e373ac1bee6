"""Predicted memory: how much a training step or a prediction takes on a device, and what makes a run fit."""

from segtrain.memory.fitting import Plan, plan
from segtrain.memory.footprint import evaluation_footprint, inference_footprint, parameters, training_footprint
from segtrain.memory.liveness import Footprint

__all__ = [
    "Footprint",
    "Plan",
    "evaluation_footprint",
    "inference_footprint",
    "parameters",
    "plan",
    "training_footprint",
]
