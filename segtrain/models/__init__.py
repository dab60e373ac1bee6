"""Networks from settings: `build_model(recipe.model)`."""

import keras

from segtrain.config import FCNConfig, Model
from segtrain.errors import UserError
from segtrain.models.fcn import build_fcn
from segtrain.models.unet import build_unet


def build_model(
    config: Model, *, channels: int = 3, dtype_policy: str = "float32", seed: int = 0, rematerialize: bool = False
) -> keras.Model:
    """A network from pictures (B, H, W, channels) in [0, 1] to logits (B, H, W, 1), for any H and W.

    Sizes that the depth does not divide are padded inside and cropped back. Logits are float32, and float64 under the
    policy `float64`. Kernels are drawn He-normal from `seed`: the same seed gives the same weights.

    With `rematerialize` a U-Net keeps the inputs of its blocks alone for the gradient and computes the rest again; its
    variables are the same, in the same order. Such a network is not for saving. Raises `UserError` for an FCN.
    """
    dtype = keras.DTypePolicy(dtype_policy)
    if isinstance(config, FCNConfig):
        if rematerialize:
            raise UserError("train.rematerialize: an FCN has no blocks to compute again; set it to false")
        return build_fcn(config, channels, dtype, seed)
    return build_unet(config, channels, dtype, seed, rematerialize)
