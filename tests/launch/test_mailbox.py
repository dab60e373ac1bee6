"""What is kept of what workers tell, and for how long."""

from segtrain.cluster.watchdog import Stuck
from segtrain.launch.mailbox import Began, Mailbox, StuckWorker, Told
from segtrain.runs.status import Progress


def step(number: int, epoch: int = 1) -> Progress:
    return Progress("training", epoch, 2, number, 10)


def told(mailbox: Mailbox, read: int = 0) -> list[Told]:
    return [message for _, message in mailbox.take(read)]


def test_of_moments_within_an_epoch_the_newest_is_kept_and_of_all_else_everything() -> None:
    mailbox = Mailbox()
    stuck = StuckWorker(1, Stuck(30.0, "loop.py:1 in wait", False, ""))
    for message in (Began(0, "node", "host"), step(1), step(2), "a line", "a line", step(3), step(1, epoch=2), stuck):
        mailbox.put(message)
    assert told(mailbox) == [
        *(Began(0, "node", "host"), step(2), "a line", "a line"),
        *(step(3), step(1, epoch=2), stuck),
    ]


def test_what_was_not_seen_to_arrive_is_given_again_and_what_was_is_forgotten() -> None:
    mailbox = Mailbox()
    for line in ("first", "second"):
        mailbox.put(line)
    (first, _), (second, _) = mailbox.take(0)
    assert told(mailbox) == ["first", "second"]
    assert told(mailbox, first) == ["second"]
    assert told(mailbox) == ["second"]
    assert told(mailbox, second) == []


def test_numbers_grow_even_over_a_mailbox_that_is_started_again() -> None:
    before, after = Mailbox(), Mailbox()
    for mailbox in (before, before, after):
        mailbox.put("a line")
    numbers = [number for mailbox in (before, after) for number, _ in mailbox.take(0)]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 3


def test_workers_learn_that_they_should_leave() -> None:
    mailbox = Mailbox()
    assert not mailbox.wants_to_leave()
    mailbox.ask_to_leave()
    assert mailbox.wants_to_leave()
