"""Sums of gradients over replicas, in packs that start while the backward pass goes on."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from segtrain.training.strategy import sum_over_replicas

PACK_BYTES = 40 << 20
"""A pack is summed once it holds as much. Large packs use a network well; the 132 MiB of f=64 at depth 4 make three."""


class GradientSums:
    """Use it on one replica, around one backward pass.

    TensorFlow runs collectives in the order in which they are traced, on every replica. A sum that is written down
    after the backward pass would wait for its last synchronized norm, and with it for all gradients. So each weight
    tells when its gradient is known, and a pack is summed there.
    """

    def __init__(self, earlier: Sequence[tf.Tensor] = ()) -> None:
        """earlier: gradients to add, of the parts of the batch before this one."""
        self._earlier = earlier
        self._pack: dict[int, tf.Tensor] = {}
        self._sums: dict[int, tf.Tensor] = {}

    def collecting(self, weights: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The weights for the forward pass to use. Their gradients have to be taken once."""
        return [_told(weight, self._collector(index)) for index, weight in enumerate(weights)]

    def finish(self, totals: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Sum what is left, with `totals` in the same pack. Returns the sums of all gradients, and of the totals."""
        *sums, totals = sum_over_replicas([*self._pack.values(), totals])
        self._sums.update(zip(self._pack, sums, strict=True))
        return [self._sums[index] for index in sorted(self._sums)], totals

    def _collector(self, index: int) -> Callable[[tf.Tensor], None]:
        def collect(gradient: tf.Tensor) -> None:
            self._pack[index] = gradient + self._earlier[index] if self._earlier else gradient
            if sum(part.shape.num_elements() * part.dtype.size for part in self._pack.values()) >= PACK_BYTES:
                self._sums.update(zip(self._pack, sum_over_replicas(list(self._pack.values())), strict=True))
                self._pack = {}

        return collect


def _told(weight: tf.Tensor, collect: Callable[[tf.Tensor], None]) -> tf.Tensor:
    """The same value; `collect` gets its whole gradient while the backward pass is traced."""

    @tf.custom_gradient
    def same(weight: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def gradient(dy: tf.Tensor) -> tf.Tensor:
            collect(dy)
            return dy

        return tf.identity(weight), gradient

    told: tf.Tensor = same(weight)
    return told
