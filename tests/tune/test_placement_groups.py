"""What a trial has made on the cluster goes with it."""

from pathlib import Path

import pytest
import ray
from ray.util import placement_group_table
from ray.util.placement_group import PlacementGroup, placement_group

from segtrain.tune.placement_groups import TrialGroups
from tests.support.waiting import wait_until


def state(group: PlacementGroup) -> str:
    return str(placement_group_table(group)["state"])


@pytest.mark.ray
def test_a_trials_groups_are_removed_and_another_trials_are_left(ray_session: str, tmp_path: Path) -> None:
    groups = TrialGroups()
    made = [placement_group([{"CPU": 1}]) for _ in range(3)]
    for group in made:
        ray.get(group.ready())
    for number, group in zip((4, 4, 5), made, strict=True):
        groups.put(number, group)
    groups.remove(4)
    wait_until(lambda: [state(group) for group in made] == ["REMOVED", "REMOVED", "CREATED"])
    groups.remove(4)  # a trial that is resumed has none yet
    groups.remove(5)
    wait_until(lambda: state(made[2]) == "REMOVED")
    groups.close()
