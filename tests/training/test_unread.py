"""When results are read, alone and by two workers of different speed."""

import pytest

from segtrain.training.unread import Unread


def read_at(steps: int, step_s: float) -> list[list[int]]:
    """Which steps are read after each of `steps` steps."""
    unread: Unread[int] = Unread()
    unread.learn(step_s)
    read = []
    for step in range(steps):
        unread.add(step)
        read.append(list(unread.due()))
    return [*read, list(unread.rest())]


def test_before_a_steps_time_is_known_each_is_read_while_the_next_runs() -> None:
    unread: Unread[int] = Unread()
    unread.add(0)
    assert list(unread.due()) == []
    unread.add(1)
    assert list(unread.due()) == [0]
    assert list(unread.rest()) == [1]
    assert list(unread.rest()) == []


@pytest.mark.parametrize(
    ("step_s", "at_once"), [(0.0, 16), (0.001, 16), (0.03125, 16), (0.05, 10), (0.2, 2), (0.26, 1), (9.0, 1)]
)
def test_half_a_second_of_steps_is_read_at_once_and_sixteen_at_most(step_s: float, at_once: int) -> None:
    read = [steps for steps in read_at(40, step_s)[:-1] if steps]
    assert {len(steps) for steps in read} == {at_once}


@pytest.mark.parametrize("step_s", [0.0, 0.05, 0.3])
def test_each_step_is_read_once_and_in_order(step_s: float) -> None:
    assert [step for steps in read_at(37, step_s) for step in steps] == list(range(37))
