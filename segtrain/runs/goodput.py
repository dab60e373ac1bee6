"""Where a run's time went, over all its attempts: `goodput.json` in its folder.

Of each attempt the driver knows when it began and ended and why, and the chief tells what it spent its seconds on.
Steps beyond the last complete checkpoint are lost with their attempt, and taken again by the next one.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

from pydantic import ConfigDict, TypeAdapter

from segtrain.runs.run_folder import RunFolder
from segtrain.runs.status import Account
from segtrain.storage.files import Storage
from segtrain.storage.json_text import read_json

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Attempt(Account):
    """One group of workers, from asking for them to their end; seconds, and steps since the start of the run."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    began_at: float
    """Seconds since 1970."""
    workers: int
    seconds: float = 0.0
    """From its begin to its end, or to now while it goes on."""
    waiting_s: float = 0.0
    """Until its workers ran: for resources, and for their processes."""
    lost_s: float = 0.0
    """Of `steps_s` and `input_wait_s`, what went into steps that no checkpoint held at its end."""
    end: str = ""
    """Why it ended; empty while it goes on, and where its driver was killed."""

    @property
    def other_s(self) -> float:
        """Neither waiting, starting, steps, input, checkpoints nor evaluation: noticing a fault, ending, writing."""
        known = self.waiting_s + self.starting_s + self.steps_s + self.input_wait_s + self.checkpoint_s
        return max(self.seconds - known - self.evaluation_s, 0.0)

    @property
    def lost_steps_s(self) -> float:
        """`lost_s` without the share of it that was waiting for input, which is counted as that."""
        both = self.steps_s + self.input_wait_s
        return self.lost_s * self.steps_s / both if both else 0.0

    def closed(self, resumed_step: int) -> "Attempt":
        """This attempt, once it is known that the next one goes on from `resumed_step`.

        What the lost steps took is their share of the steps' and the input's seconds.
        """
        lost, taken = max(self.step - resumed_step, 0), self.step - self.first_step
        share = min(lost / taken, 1.0) if taken else 0.0
        return replace(self, lost_s=share * (self.steps_s + self.input_wait_s))


@dataclass(frozen=True)
class Goodput:
    """All attempts of a run, oldest first."""

    attempts: tuple[Attempt, ...] = ()

    def total(self, kind: str) -> float:
        """Seconds of one kind, such as `steps_s`, over all attempts."""
        return float(sum(getattr(attempt, kind) for attempt in self.attempts))

    @property
    def seconds(self) -> float:
        """Seconds from the begin to the end of every attempt; not those between them, when no driver was there."""
        return self.total("seconds")

    @property
    def share(self) -> float:
        """Seconds of steps and evaluations that count, of all seconds; 0 before the first."""
        useful = self.total("steps_s") + self.total("evaluation_s") - self.total("lost_steps_s")
        return useful / self.seconds if self.seconds else 0.0

    def lost_in(self) -> list[int]:
        """Of each attempt, how many of its steps a later one had to take again."""
        lost = [0] * len(self.attempts)
        # One that came to no step tells nothing of the one before it.
        stepped = [number for number, attempt in enumerate(self.attempts) if attempt.step]
        for before, after in pairwise(stepped):
            lost[before] = max(self.attempts[before].step - self.attempts[after].first_step, 0)
        return lost

    def parts(self) -> dict[str, float]:
        """Kind of time -> seconds; they add up to `seconds`."""
        lost_steps_s = self.total("lost_steps_s")
        return {
            "steps": self.total("steps_s") - lost_steps_s,
            "evaluation": self.total("evaluation_s"),
            "input": self.total("input_wait_s"),
            "checkpoints": self.total("checkpoint_s"),
            "waiting for resources": self.total("waiting_s"),
            "starting": self.total("starting_s"),
            "lost steps": lost_steps_s,
            "other": self.total("other_s"),
        }

    def begun(self, attempt: Attempt) -> "Goodput":
        """With a new attempt."""
        return Goodput((*self.attempts, attempt))

    def updated(self, attempt: Attempt) -> "Goodput":
        """With the newest attempt as it is now.

        As soon as that has taken steps it is known where it went on from, and so what the one before it lost.
        """
        earlier = list(self.attempts[:-1])
        stepped = [number for number, before in enumerate(earlier) if before.step]
        if stepped and attempt.step:
            earlier[stepped[-1]] = earlier[stepped[-1]].closed(attempt.first_step)
        return Goodput((*earlier, attempt))

    def to_json(self) -> bytes:
        return json.dumps({"format_version": FORMAT_VERSION, "attempts": [asdict(a) for a in self.attempts]}).encode()


def read(folder: str, storage: Storage) -> Goodput:
    """What a run's folder holds; nothing where there is none yet, or none that this segtrain reads.

    A record of where time went is no reason to refuse to train, so a damaged one begins anew.
    """
    try:
        tree = read_json(storage.read_bytes(RunFolder(folder).goodput))
        if tree["format_version"] != FORMAT_VERSION:
            return Goodput()
        return Goodput(TypeAdapter(tuple[Attempt, ...]).validate_python(tree["attempts"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Goodput()


def goodput_sentence(goodput: Goodput) -> str:
    """`goodput 87 %: 260 of 300 s in steps and scores; starting 21 s, ...`, the largest losses first."""
    parts = goodput.parts()
    useful = parts.pop("steps") + parts.pop("evaluation")
    losses = sorted(parts.items(), key=lambda part: -part[1])
    told = ", ".join(f"{kind} {_seconds(seconds)}" for kind, seconds in losses if seconds >= 0.5)
    head = f"{goodput.share:.0%}: {_seconds(useful)} of {_seconds(goodput.seconds)} in steps and scores"
    return f"{head}; {told}" if told else head


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def rows(goodput: Goodput) -> Sequence[tuple[str, ...]]:
    """A row an attempt for a table: number, workers, steps, seconds, lost steps, why it ended."""
    table = []
    for number, (attempt, lost) in enumerate(zip(goodput.attempts, goodput.lost_in(), strict=True), start=1):
        steps = f"{attempt.first_step} to {attempt.step}" if attempt.step else "none"
        end = attempt.end or ("its driver was lost" if number < len(goodput.attempts) else "going on")
        table.append((str(number), str(attempt.workers), steps, _seconds(attempt.seconds), str(lost), end))
    return table
