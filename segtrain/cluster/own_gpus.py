"""Which of the GPUs that a worker's process sees are the worker's own.

Workers of one machine see the GPUs of all of them, because NCCL copies directly between two GPUs only where a process
sees both. TensorFlow would take them all, so each worker is told its own.
"""

from collections.abc import Sequence

from segtrain.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus(visible: str | None, assigned: Sequence[str]) -> str | None:
    """What CUDA_VISIBLE_DEVICES should be in a worker that Ray assigned these GPUs; None leaves it unset.

    What it is already, unless they are slices of a GPU (MIG): of several slices CUDA shows a process the first alone,
    which may be another worker's.
    """
    return ",".join(assigned) if any(gpu.startswith("MIG-") for gpu in assigned) else visible


def own_positions(visible: str | None, assigned: Sequence[str]) -> tuple[int, ...]:
    """Positions of the assigned GPUs in CUDA_VISIBLE_DEVICES, which is the order of TensorFlow's devices.

    `assigned` are Ray's names of them: numbers, UUIDs or slices. With CUDA_VISIBLE_DEVICES unset a process sees all
    GPUs of the machine, and a number is a position. Raises UserError where a GPU cannot be seen.
    """
    listed = None if visible is None else [name.strip() for name in visible.split(",")]
    positions = []
    for gpu in assigned:
        if listed is None and gpu.isdecimal():
            positions.append(int(gpu))
        elif listed is not None and gpu in listed:
            positions.append(listed.index(gpu))
        else:
            raise UserError(
                f"Ray assigned GPU {gpu} to this worker, but {VISIBLE} is {visible or 'not set'}; leave {VISIBLE} to "
                f"Ray, or set it before Ray starts on the machine"
            )
    return tuple(sorted(positions))
