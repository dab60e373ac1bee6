"""Which of several workers the others were waiting for."""

from segtrain.cluster.watchdog import Stuck
from segtrain.launch.supervisor import culprits


def found(where: str, *, in_tensorflow: bool) -> Stuck:
    return Stuck(30.0, where, in_tensorflow, "")


WAITING = found("eager/execute.py:52 in quick_execute", in_tensorflow=True)
ASLEEP = found("dataset/reader.py:80 in fetch", in_tensorflow=False)


def test_a_worker_that_says_nothing_while_the_others_are_stuck_is_frozen() -> None:
    assert culprits({0: WAITING, 2: WAITING}, 3) == {1: "gives no answer"}


def test_those_outside_of_tensorflow_are_what_the_others_wait_for() -> None:
    assert culprits({0: WAITING, 1: ASLEEP}, 2) == {1: "stuck at dataset/reader.py:80 in fetch"}


def test_where_all_are_in_tensorflow_all_are_named_and_where_none_is_stuck_none() -> None:
    assert list(culprits({1: WAITING, 0: WAITING}, 2)) == [0, 1]
    assert culprits({}, 2) == {}
