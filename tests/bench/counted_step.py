"""What a step of a U-Net starts, moves and sums up: counts, and from them estimates. No GPU was at hand.

Kernels and collectives are those of the optimized graph (`tests/support/step_graphs.py`, which
`tests/training/test_step_graphs.py` holds below its bounds): depth 4, Adam, synchronized batch norm.
"""

from collections.abc import Iterable

from segtrain.memory.operations import OperationList

COUNTED_LAYERS = 41
"""Layers with weights of the network that was counted: 23 convolutions and 18 norms."""
KERNELS_ALONE = 507
"""Kernels a step of one replica, on batches without padding."""
KERNELS_TOGETHER = 1025
"""Likewise of each of several replicas, and with padding: sums over replicas are not fused with anything."""
LAUNCH_S = 5e-6
"""To start a kernel: 4 to 6 us. Assumed, as it is usual; TensorFlow's executor is part of it."""
NORM_PASSES = 8
"""Over a batch norm's activations, a step. Forwards: x for its sums, x and y to normalize it. Backwards: x and the
gradient for their sums, and both again for the gradient that is written. ReLU and convolutions have their own."""
SUMS_A_NORM = {"synchronized": 2}
"""Collectives of a norm of each kind, a step: sums of its statistics, and of their gradient; others have none."""
WEIGHT_BYTES = 4
PACK_BYTES = 40 << 20
"""`segtrain.training.gradient_sums.PACK_BYTES`, without TensorFlow, which that module loads."""


def launching_s(layers: int, replicas: int) -> float:
    """Seconds that starting a step's kernels takes, for layers with weights: as many each as where they were counted.

    507 x 5 us = 2.5 ms for 41 layers and one replica, 1,025 x 5 us = 5.1 ms for several.
    """
    return (KERNELS_ALONE if replicas == 1 else KERNELS_TOGETHER) * layers / COUNTED_LAYERS * LAUNCH_S


def layers_with_weights(net: OperationList) -> int:
    """Convolutions and norms."""
    return sum(operation.trainable > 0 for operation in net.operations)


def norm_bytes(net: OperationList) -> int:
    """Bytes that batch norms read and write, a step, beside what convolutions do."""
    return NORM_PASSES * sum(operation.output.bytes for operation in net.operations if operation.moving)


def packs(gradient_bytes: Iterable[int], pack_bytes: int = PACK_BYTES) -> list[int]:
    """Bytes of each sum of gradients, which come in this order: a pack is summed once it holds `pack_bytes`.

    The last one has what is left, with the losses.
    """
    summed = [0]
    for size in gradient_bytes:
        summed[-1] += size
        if summed[-1] >= pack_bytes:
            summed.append(0)
    return summed


def collectives(net: OperationList, norm: str) -> int:
    """A step's: those of its norms, and one a pack of gradients, which come from the last layer to the first."""
    backwards = (WEIGHT_BYTES * operation.trainable for operation in reversed(net.operations))
    norms = sum(operation.moving > 0 for operation in net.operations)
    return norms * SUMS_A_NORM.get(norm, 0) + len(packs(backwards))
