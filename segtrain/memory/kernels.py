"""Scratch space of the kernels that compute a network, beyond what they read and make."""

from dataclasses import dataclass

from segtrain.process import onednn

EIGEN_TARGET_BYTES = 30 * 2**20
"""Of patches: TensorFlow lays out pictures together until they are so much (`conv_grad_filter_ops.cc`)."""


@dataclass(frozen=True)
class Convolution:
    """Sizes of a convolution; of a transposed one, those of the convolution whose gradient it is."""

    batch: int
    output_pixels: int
    """Of one picture."""
    output_channels: int
    input_channels: int
    window: int
    """Pixels that each output looks at: 9 for 3x3."""
    itemsize: int


@dataclass(frozen=True)
class Kernels:
    """How a device computes convolutions and their gradients."""

    lays_out_patches: bool
    """Both gradients go through a matrix with each window's pixels in a row (im2col), `window` times the input:
    TensorFlow's own CPU kernels do, oneDNN's and cuDNN's do not."""
    gaps: float
    """What a pool of memory loses between tensors of different sizes in a training step, as a fraction of what is in
    use. oneDNN has a pool, and so have GPUs; these fractions fit what `tests/bench/memory_prediction.py` measures."""
    forward_gaps: float
    """Likewise in a forward pass, where everything comes and goes."""

    def forward(self, convolution: Convolution) -> int:
        """Bytes beside the output; the CPU's own kernels add half precision up in float32."""
        if self.lays_out_patches and convolution.itemsize == 2:
            return convolution.batch * convolution.output_pixels * convolution.output_channels * 4
        return 0

    def gradient(self, convolution: Convolution) -> int:
        """Bytes beside the gradient of the weights; beside that of the input they are the same."""
        if not self.lays_out_patches:
            return 0
        window = convolution.window * convolution.input_channels
        pixels, channels, itemsize = convolution.output_pixels, convolution.output_channels, convolution.itemsize
        unit = (pixels * (window + channels) + window * channels) * itemsize
        together = min(convolution.batch, -(-EIGEN_TARGET_BYTES // unit))
        return together * pixels * window * itemsize


EIGEN = Kernels(lays_out_patches=True, gaps=0.0, forward_gaps=0.0)
"""TensorFlow's own on CPUs."""
DNN = Kernels(lays_out_patches=False, gaps=0.08, forward_gaps=0.28)
"""oneDNN on CPUs, cuDNN on GPUs."""


def cpu_kernels(precision: str) -> Kernels:
    """What this machine's CPU computes with: half precision and float64 are left to TensorFlow's own kernels.

    (oneDNN takes half precision on CPUs with AVX-512; then the prediction is too high.)
    """
    return DNN if precision == "float32" and onednn() else EIGEN
