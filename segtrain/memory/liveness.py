"""What is in memory at each moment of a pass through a network, by kind, and the moment when it is most."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby

from segtrain.memory.kernels import Tensor
from segtrain.memory.operations import Operation

LATE_GRADIENTS = 3
"""Weights' gradients that the chain of activations' gradients runs ahead of: 2 to 5 come within 20 % of measured peaks
(`tests/bench/memory_prediction.py`), 0 and 1 are up to 40 % too low."""

Copy = tuple[Tensor, int]
"""A tensor as the forward pass made it (0), or as the numbered part made it when it was computed again."""


@dataclass(frozen=True)
class Footprint:
    """Bytes on one replica's device at one moment, by kind; a `Pass` leaves out what is there all the time."""

    weights: int = 0
    """Parameters, and moving statistics."""
    gradients: int = 0
    """Of the weights."""
    optimizer: int = 0
    """Slots: Adam's two moments and the like."""
    ema: int = 0
    """The moving average of the weights."""
    activations: int = 0
    """Results of layers, kept for the gradient or for the next layer."""
    workspace: int = 0
    """Gradients of activations, and the scratch space of kernels."""
    pictures: int = 0
    """Pictures and masks as they came (uint8), and as they go into the network (float32)."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


class Pass:
    """The buffers of one forward pass and, where it trains, one backward pass, in the order of their coming and going.

    `given` are tensors that are there before the first operation. The gradients of weights are computed beside those
    of activations, which do not wait for them: `LATE_GRADIENTS` of them are behind, and what they need stays as long.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        given: Iterable[Tensor],
        *,
        gradient_bytes: int,
    ) -> None:
        self._operations = operations
        self._given = frozenset(given)
        self._gradient_bytes = gradient_bytes
        self._fullest = Footprint()
        self._uses: Counter[Copy] = Counter()  # still to come, of what is in memory
        self._held: Counter[bool] = Counter()  # bytes of what is in memory, by whether it is among `given`
        self._towards: dict[Tensor, int] = {}  # gradients of activations, and their bytes
        self._late: deque[tuple[int, list[Copy]]] = deque()  # for weights' gradients: what came in, what was kept
        self._gradients = 0

    def infer(self) -> Footprint:
        """The fullest moment of a forward pass that keeps nothing."""
        self._forward(self._operations, Counter(), 0)
        return self._fullest

    def train(self, *, rematerialize: bool) -> Footprint:
        """The fullest moment of a forward pass and its gradient.

        With `rematerialize` parts keep only what comes into them, and are computed again before their gradient.
        """
        parts = [
            (rematerialize and name is not None, list(part))
            for name, part in groupby(self._operations, key=lambda operation: operation.part)
        ]
        kept: Counter[Tensor] = Counter()
        for again, part in parts:
            kept.update(_inputs(part) if again else ())
            kept.update(x for x in _kept(part) if not again or x in _inputs(part))
        self._forward(self._operations, kept, 0)
        for number, (again, part) in enumerate(reversed(parts), start=1):
            if again:
                self._forward(part, Counter(_kept(part)), number)
                self._release((x, 0) for x in _inputs(part))
            for operation in reversed(part):
                inputs = _inputs(part) if again else set(operation.keeps)
                self._back(operation, [(x, 0 if x in inputs else number) for x in set(operation.keeps)])
        return self._fullest

    def _forward(self, operations: Sequence[Operation], kept: Counter[Tensor], number: int) -> None:
        """Results stay until their last use; each time that they are among `kept` is one."""
        uses = Counter(x for operation in operations for x in operation.inputs)
        made: set[Tensor] = set()
        if not number:
            made |= self._given
            self._hold({(x, 0): uses[x] + kept[x] for x in self._given})
        for operation in operations:
            fresh = {operation.output, *operation.keeps} - set(operation.inputs)
            unused = {x for x in fresh if not uses[x] + kept[x]}
            read = [(x, number) for x in operation.inputs if x in made]
            if operation.in_place:
                self._release(read)
            self._hold({(x, number): uses[x] + kept[x] or 1 for x in fresh})
            made |= fresh
            self._look(operation.forward_scratch)
            if not operation.in_place:
                self._release(read)
            self._release((x, number) for x in unused)

    def _back(self, operation: Operation, kept: list[Copy]) -> None:
        """From the gradient of the result to those of inputs and weights."""
        coming = self._towards.pop(operation.output, 0)
        targets = () if operation.stops_gradient else operation.inputs
        made = 0 if operation.in_place else sum(x.bytes for x in targets)
        self._gradients += operation.trainable * self._gradient_bytes
        self._look(coming + made + operation.backward_scratch)
        # A second gradient of the same tensor is added to the first.
        self._towards |= {x: x.bytes for x in targets}
        if operation.late:
            self._late.append((coming, kept))
            kept = self._late.popleft()[1] if len(self._late) > LATE_GRADIENTS else []
        self._release(kept)

    def _hold(self, uses: Mapping[Copy, int]) -> None:
        self._uses.update(uses)
        for tensor, _ in uses:
            self._held[tensor in self._given] += tensor.bytes

    def _release(self, copies: Iterable[Copy]) -> None:
        for copy in copies:
            self._uses[copy] -= 1
            if not self._uses[copy]:
                del self._uses[copy]
                self._held[copy[0] in self._given] -= copy[0].bytes

    def _look(self, scratch: int) -> None:
        workspace = sum(self._towards.values()) + sum(coming for coming, _ in self._late) + scratch
        now = Footprint(
            gradients=self._gradients, activations=self._held[False], workspace=workspace, pictures=self._held[True]
        )
        self._fullest = max(self._fullest, now, key=lambda moment: moment.total)


def _inputs(part: Sequence[Operation]) -> set[Tensor]:
    """What comes into a part from outside."""
    return {x for operation in part for x in operation.inputs} - {operation.output for operation in part}


def _kept(part: Sequence[Operation]) -> list[Tensor]:
    """What the operations' gradients need again, as often as they do."""
    return [x for operation in part for x in set(operation.keeps)]
