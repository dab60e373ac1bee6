"""The fully convolutional network, without skips.

It is what the 2023 article ("Image Segmentation: An In-Depth Guide", E. Izaguirre, October 2023) compares its U-Net
with. The article was not at hand, only its scores and that it strides instead of pooling. So this is the plain form:
each level a 3x3 convolution of stride 2 and one of stride 1, twice the channels a level, then its mirror image in
transposed convolutions; ReLU after each, no norm.
"""

from segtrain.architectures.layer_records import Convolve, LayerList
from segtrain.config import FCNConfig


def fcn(net: LayerList, config: FCNConfig, x: str) -> str:
    """Add the layers from padded pictures to the last features, and return the last one's name."""
    for level in range(config.depth):
        filters = config.filters * 2**level
        x = net.add(f"down{level}_strided", Convolve(filters, strides=2, relu=True), x)
        x = net.add(f"down{level}_conv", Convolve(filters, relu=True), x)
    for level in reversed(range(config.depth)):
        filters = config.filters * 2**level
        x = net.add(f"up{level}_conv", Convolve(filters, transposed=True, relu=True), x)
        x = net.add(f"up{level}_strided", Convolve(filters, strides=2, transposed=True, relu=True), x)
    return x
