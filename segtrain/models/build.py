"""Networks from settings: Keras layers for the records of `segtrain.architectures.layer_list`."""

from itertools import groupby
from typing import Any

import keras

from segtrain.architectures.layer_list import layer_list
from segtrain.architectures.layer_records import (
    PICTURE,
    AddUp,
    Convolve,
    CropBack,
    DropOut,
    LayerRecord,
    MakeLogits,
    NormalizeBatch,
    NormalizeGroups,
    Pad,
    PoolMax,
    Rectify,
    RepeatPixels,
)
from segtrain.config import Model
from segtrain.errors import UserError
from segtrain.models.batch_norm import BatchNorm
from segtrain.models.dropout import Dropout
from segtrain.models.layers import CropLike, JoinedConv2D, PadToMultiple, he_normal
from segtrain.models.rematerialize import Rematerialized


def build_model(
    config: Model, *, channels: int = 3, dtype_policy: str = "float32", seed: int = 0, rematerialize: bool = False
) -> keras.Model:
    """A network from pictures (B, H, W, channels) in [0, 1] to logits (B, H, W, 1), for any H and W.

    - Sizes that the depth does not divide are padded inside and cropped back.
    - Logits are float32, and float64 under the policy `float64`.
    - Kernels are drawn He-normal from `seed`: the same seed gives the same weights.
    - With `rematerialize` a U-Net keeps only the inputs of its blocks for the gradient and computes the rest again. Its
      variables are the same, in the same order. Such a network cannot be saved.

    Raises `UserError` for an FCN.
    """
    dtype = keras.DTypePolicy(dtype_policy)
    layers = layer_list(config, channels)
    if rematerialize and not any(layer.part for layer in layers):
        raise UserError(
            f"train.rematerialize: an {config.kind.upper()} has no blocks to compute again; set it to false"
        )
    picture = keras.Input((None, None, channels), dtype=dtype.variable_dtype, name=PICTURE)
    made = {PICTURE: picture}
    for name, part in groupby(layers, key=lambda layer: layer.part):
        add = _add_again if name and rematerialize else _add
        output = add(list(part), made, dtype, seed)
    return keras.Model(picture, output, name=config.kind)


def _add(layers: list[LayerRecord], made: dict[str, Any], dtype: keras.DTypePolicy, seed: int) -> Any:
    """Apply layers to what was `made` before, by name, add what each makes, and return what the last makes."""
    for layer in layers:
        made[layer.name] = _apply(layer, [made[name] for name in layer.inputs], dtype, seed)
    return made[layers[-1].name]


def _add_again(layers: list[LayerRecord], made: dict[str, Any], dtype: keras.DTypePolicy, seed: int) -> Any:
    """Like `_add`, as one layer that computes them again on the way back."""
    inside = {layer.name for layer in layers}
    outside = {name: made[name] for layer in layers for name in layer.inputs if name not in inside}
    ends = {name: keras.Input(x.shape[1:], dtype=x.dtype) for name, x in outside.items()}
    part = keras.Model(list(ends.values()), _add(layers, dict(ends), dtype, seed), name=layers[0].part)
    made[layers[-1].name] = Rematerialized(part)(list(outside.values()))
    return made[layers[-1].name]


def _apply(layer: LayerRecord, inputs: list[Any], dtype: keras.DTypePolicy, seed: int) -> Any:
    """What the Keras layer of one record makes of its inputs."""
    x, name = inputs[0], layer.name
    own = {"dtype": dtype, "name": name}
    in_full = {"dtype": dtype.variable_dtype, "name": name}
    match layer.kind:
        case Pad(multiple):
            return PadToMultiple(multiple, **own)(x)
        case Convolve() as kind:
            return _convolve(kind, inputs, kernel_initializer=he_normal(seed, name), **own)
        case NormalizeBatch(synchronized, momentum):
            return BatchNorm(synchronized, momentum, **own)(x)
        case NormalizeGroups(groups):
            return keras.layers.GroupNormalization(groups, **own)(x)
        case Rectify():
            return keras.layers.ReLU(**own)(x)
        case AddUp():
            return keras.layers.Add(**own)(inputs)
        case DropOut(rate, layer_index):
            return Dropout(rate, seed, layer_index, **own)(x)
        case PoolMax():
            return keras.layers.MaxPooling2D(2, **own)(x)
        case RepeatPixels():
            return keras.layers.UpSampling2D(2, interpolation="nearest", **own)(x)
        case MakeLogits():
            return keras.layers.Conv2D(1, 1, kernel_initializer=he_normal(seed, name), **in_full)(x)
        case CropBack(multiple):
            return CropLike(multiple, **in_full)(*inputs)
    raise TypeError(f"{name}: segtrain.models.build has no Keras layer for {type(layer.kind).__name__}")


def _convolve(kind: Convolve, inputs: list[Any], **settings: Any) -> Any:
    convolution = keras.layers.Conv2DTranspose if kind.transposed else keras.layers.Conv2D
    if len(inputs) > 1:
        convolution = JoinedConv2D
    layer = convolution(
        kind.filters,
        kind.size,
        kind.strides,
        padding="same",
        use_bias=kind.bias,
        activation="relu" if kind.relu else None,
        **settings,
    )
    return layer(inputs if len(inputs) > 1 else inputs[0])
