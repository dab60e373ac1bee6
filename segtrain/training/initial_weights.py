"""Weights of one network for another that differs from it in biases before batch norm."""

from collections.abc import Iterable

import keras
import numpy as np

from segtrain.architectures.layer_records import Convolve, LayerRecord, NormalizeBatch


def fitting_weights(source: keras.Model, layers: Iterable[LayerRecord]) -> dict[str, np.ndarray]:
    """The variables of `source` by path, with the biases before batch norm that a network of these `layers` has.

    A bias that is missing is 0. One that is too many is subtracted from the moving mean of the norm that follows. So
    the network computes what `source` does.
    """
    weights = {variable.path: np.asarray(variable.value) for variable in source.variables}
    convolutions = {layer.name: layer.kind for layer in layers if isinstance(layer.kind, Convolve)}
    for norm in layers:
        before = norm.inputs[0]
        if not isinstance(norm.kind, NormalizeBatch) or before not in convolutions:
            continue
        bias, mean = f"{before}/bias", f"{norm.name}/moving_mean"
        if convolutions[before].bias:
            weights.setdefault(bias, np.zeros_like(weights[mean]))
        elif bias in weights:
            weights[mean] = weights[mean] - weights.pop(bias)
    return weights
