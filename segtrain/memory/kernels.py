"""Tensors on a device, and the scratch space of the kernels that compute them from each other."""

from dataclasses import dataclass

from segtrain.process import onednn

EIGEN_TARGET_BYTES = 30 * 2**20
"""Of patches: TensorFlow lays out pictures together until they are so much (`conv_grad_filter_ops.cc`)."""
FLOAT32 = 4


@dataclass(frozen=True, eq=False)
class Tensor:
    """One buffer on the device: (B, height, width, channels)."""

    name: str
    batch: int
    height: int
    width: int
    channels: int
    itemsize: int
    """Bytes an element."""

    @property
    def pixels(self) -> int:
        return self.batch * self.height * self.width

    @property
    def elements(self) -> int:
        return self.pixels * self.channels

    @property
    def bytes(self) -> int:
        return self.elements * self.itemsize


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

    def forward(self, output: Tensor) -> int:
        """Bytes beside the output; the CPU's own kernels add half precision up in float32."""
        return FLOAT32 * output.elements if self.lays_out_patches and output.itemsize < FLOAT32 else 0

    def gradient(self, x: Tensor, output: Tensor, *, window: int) -> int:
        """Bytes beside the gradient of the weights; beside that of the input they are the same.

        `window`: pixels that each output looks at, 9 for 3x3.
        """
        if not self.lays_out_patches:
            return 0
        pixels, columns = output.height * output.width, window * x.channels
        unit = (pixels * (columns + output.channels) + columns * output.channels) * x.itemsize
        together = min(x.batch, -(-EIGEN_TARGET_BYTES // unit))
        return together * pixels * columns * x.itemsize


EIGEN = Kernels(lays_out_patches=True, gaps=0.0, forward_gaps=0.0)
"""TensorFlow's own on CPUs."""
DNN = Kernels(lays_out_patches=False, gaps=0.08, forward_gaps=0.28)
"""oneDNN on CPUs, cuDNN on GPUs."""


def cpu_kernels(precision: str) -> Kernels:
    """What this machine's CPU computes with: half precision and float64 are left to TensorFlow's own kernels.

    (oneDNN takes half precision on CPUs with AVX-512; then the prediction is too high.)
    """
    return DNN if precision == "float32" and onednn() else EIGEN
