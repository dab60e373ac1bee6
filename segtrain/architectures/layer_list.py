"""Every network as a list of layers; a driver without TensorFlow reads it too.

`segtrain.models.build` makes Keras layers of the records, and `segtrain.memory.operations` works out their memory. Each
of the two refuses a kind of layer that it does not know.
"""

from segtrain.architectures.fcn import fcn
from segtrain.architectures.layer_records import PICTURE, CropBack, LayerList, LayerRecord, MakeLogits, Pad
from segtrain.architectures.unet import unet
from segtrain.config import FCNConfig, Model


def layer_list(config: Model, channels: int = 3) -> list[LayerRecord]:
    """The layers from pictures (B, H, W, channels) to logits (B, H, W, 1), each after those that it reads."""
    net = LayerList(channels)
    x = net.add("pad", Pad(2**config.depth), PICTURE)
    x = fcn(net, config, x) if isinstance(config, FCNConfig) else unet(net, config, x)
    net.part = None
    x = net.add("logits", MakeLogits(), x)
    net.add("crop", CropBack(2**config.depth), x, PICTURE)
    return net.layers
