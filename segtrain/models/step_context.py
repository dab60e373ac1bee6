"""What a layer must know of the step around it: number of the step, samples of the batch, their weights.

Keras hands a layer its input and `training` alone. Dropout that does not depend on the batch's place in the world and
batch norm that does not count padding need more, so the training step opens a `forward_pass` around the model's call
and the layers ask for the `current` one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class ForwardPass:
    """One call of the model on one replica."""

    step: tf.Tensor
    """int64 scalar: optimizer updates before this one."""
    keys: tf.Tensor
    """int64 (B,): stable hash of each sample's id."""
    weights: tf.Tensor
    """float (B,): 1 for a sample, 0 for padding."""
    whole: bool
    """Whether every weight is known to be 1 while the pass is traced."""
    compiled: bool
    """Whether batch norm's own arithmetic is compiled by XLA."""
    update_statistics: bool
    """Whether batch norm moves its running averages."""


# A context variable and no plain global: MirroredStrategy traces each replica in a thread of its own, and a new thread
# starts with an empty context.
_current: ContextVar[ForwardPass | None] = ContextVar("forward_pass", default=None)


@contextmanager
def forward_pass(
    *,
    step: tf.Tensor,
    keys: tf.Tensor,
    weights: tf.Tensor,
    whole: bool = False,
    compiled: bool = False,
    update_statistics: bool = True,
) -> Iterator[None]:
    """Make the facts of one step known to the layers called inside the block, in this thread.

    step: int64 scalar; keys: int64 (B,); weights: float (B,). Blocks nest; the innermost counts. A function that
    rebuilds activations for the gradient must run inside the block too.
    """
    token = _current.set(ForwardPass(step, keys, weights, whole, compiled, update_statistics))
    try:
        yield
    finally:
        _current.reset(token)


def current() -> ForwardPass | None:
    """The innermost open pass of this thread, or nothing outside of one."""
    return _current.get()
