"""The placement groups of trials with several workers, so that nothing of a trial that has ended keeps its resources.

Ray Train makes them in a process of the trial, and Ray keeps them until the sweep's driver ends.
"""

from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group


class _Groups:
    """Which placement groups trials have made. Lives in a process of its own, as a Ray actor."""

    def __init__(self) -> None:
        self._groups: dict[int, list[PlacementGroup]] = {}

    def put(self, number: int, group: PlacementGroup) -> None:
        self._groups.setdefault(number, []).append(group)

    def take(self, number: int) -> list[PlacementGroup]:
        return self._groups.pop(number, [])


class TrialGroups:
    """The driver's side, and with `put` the trials'; picklable."""

    def __init__(self) -> None:
        self._actor: Any = ray.remote(num_cpus=0)(_Groups).remote()

    def put(self, number: int, group: PlacementGroup) -> None:
        """Keep a trial's group; returns when that is sure."""
        ray.get(self._actor.put.remote(number, group))

    def remove(self, number: int) -> None:
        """Remove all groups of a trial that has ended, and with them whatever still runs there."""
        for group in ray.get(self._actor.take.remote(number)):
            remove_placement_group(group)

    def close(self) -> None:
        """End the actor."""
        ray.kill(self._actor)
