"""Networks from settings: `build_model(recipe.model)`."""

import keras

from segtrain.config import FCNConfig, Model
from segtrain.models.fcn import build_fcn
from segtrain.models.unet import build_unet


def build_model(config: Model, *, channels: int = 3, dtype_policy: str = "float32", seed: int = 0) -> keras.Model:
    """A network from pictures (B, H, W, channels) in [0, 1] to logits (B, H, W, 1), for any H and W.

    Sizes that the depth does not divide are padded inside and cropped back. Logits are float32, and float64 under the
    policy `float64`. Kernels are drawn He-normal from `seed`: the same seed gives the same weights.
    """
    dtype = keras.DTypePolicy(dtype_policy)
    if isinstance(config, FCNConfig):
        return build_fcn(config, channels, dtype, seed)
    return build_unet(config, channels, dtype, seed)
