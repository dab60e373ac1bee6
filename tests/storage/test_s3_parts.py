"""The parts of the client of S3: what is retried and for how long, and what stays open."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from segtrain.storage.last_used import LastUsed
from segtrain.storage.s3_faults import error_code, is_passing
from segtrain.storage.s3_retries import retrying


class _Clock:
    """Time that passes only in sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waits_s: list[float] = []

    def sleep(self, wait_s: float) -> None:
        self.waits_s.append(wait_s)
        self.now_s += wait_s


@given(deadline_s=st.floats(0.0, 500.0), share=st.floats(0.0, 1.0), attempt_s=st.floats(0.0, 100.0))
def test_waits_grow_to_a_bound_and_attempts_end_before_the_deadline(
    deadline_s: float, share: float, attempt_s: float
) -> None:
    clock = _Clock()
    attempts = retries = 0

    def fail() -> None:
        nonlocal attempts
        attempts += 1
        clock.now_s += attempt_s
        if attempts > 1000:
            raise KeyboardInterrupt  # waits of nothing never reach a deadline
        raise OSError("again")

    def count() -> None:
        nonlocal retries
        retries += 1

    with pytest.raises((OSError, KeyboardInterrupt)):
        retrying(
            fail,
            lambda error: True,
            deadline_s,
            on_retry=count,
            clock=lambda: clock.now_s,
            sleep=clock.sleep,
            uniform=lambda low, high: low + share * (high - low),
        )
    assert clock.now_s <= max(deadline_s, attempt_s)
    assert all(wait <= min(10.0, 0.2 * 2**turn) for turn, wait in enumerate(clock.waits_s))
    assert retries == attempts - 1


def test_an_attempt_starts_only_where_it_fits_before_the_deadline() -> None:
    def attempts(deadline_s: float) -> int:
        clock = _Clock()
        count = 0

        def stall() -> None:
            nonlocal count
            count += 1
            clock.now_s += 30.0
            raise TimeoutError

        with pytest.raises(TimeoutError):
            retrying(
                stall,
                is_passing,
                deadline_s,
                clock=lambda: clock.now_s,
                sleep=clock.sleep,
                uniform=lambda _, high: high,
            )
        return count

    # Attempts of 30 s with waits of 0.2 s and 0.4 s end at 30, 60.2 and 90.6 s.
    assert [attempts(deadline_s) for deadline_s in (10.0, 60.2, 60.3, 90.6, 90.7)] == [1, 1, 2, 2, 3]


def test_the_first_good_answer_ends_the_retries() -> None:
    clock = _Clock()
    answers = iter([TimeoutError("slow"), ConnectionError("reset"), b"data"])

    def ask() -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retrying(ask, is_passing, 60.0, clock=lambda: clock.now_s, sleep=clock.sleep) == b"data"
    assert len(clock.waits_s) == 2


def test_an_error_that_stays_is_raised_at_once() -> None:
    clock = _Clock()

    def deny() -> None:
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        retrying(deny, is_passing, 60.0, clock=lambda: clock.now_s, sleep=clock.sleep)
    assert clock.waits_s == []


@pytest.mark.parametrize(
    ("code", "status", "passing"),
    [
        ("SlowDown", 503, True),
        ("InternalError", 500, True),
        ("RequestTimeout", 400, True),
        ("TooManyRequests", 429, True),
        ("AccessDenied", 403, False),
        ("NoSuchBucket", 404, False),
        ("MethodNotAllowed", 405, False),
        ("EntityTooLarge", 400, False),
    ],
)
def test_answers_are_told_apart_by_whether_waiting_helps(code: str, status: int, passing: bool) -> None:
    answer = ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")
    translated = OSError("as s3fs raises it")
    translated.__cause__ = answer
    for error in (answer, translated):
        assert error_code(error) == code
        assert is_passing(error) is passing


@pytest.mark.parametrize(
    ("said", "code", "passing"),
    [
        ("AWS Error SLOW_DOWN during GetObject operation: wait", "SlowDown", True),
        ("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 18", "NetworkConnection", True),
        ("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", "503", True),
        ("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", "400", False),
        ("AWS Error NO_SUCH_KEY during GetObject operation: gone", "NoSuchKey", False),
        ("AWS Error INVALID_ACCESS_KEY_ID during GetObject operation: unknown", "InvalidAccessKeyId", False),
        ("AWS Error ACCESS_DENIED during GetObject operation: not yours", "AccessDenied", False),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", "403", False),
        ("3 of 4 bytes came", "", True),
    ],
)
def test_what_pyarrow_says_is_read_like_what_s3_says(said: str, code: str, passing: bool) -> None:
    error = OSError(f"When reading key 'k' in bucket 'b': {said}" if code else said)
    assert error_code(error) == code
    assert is_passing(error) is passing


def test_an_object_is_opened_once_for_all_threads_that_ask() -> None:
    opened: list[str] = []
    go = threading.Event()

    def open_object(path: str) -> object:
        go.wait(5)
        opened.append(path)
        return object()

    handles = LastUsed(open_object, limit=256)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(handles.get, "bucket/key") for _ in range(8)]
        go.set()
    assert len({id(each.result()) for each in asked}) == 1
    handles.drop("bucket/key")
    assert handles.get("bucket/key") is not asked[0].result()
    assert opened == ["bucket/key"] * 2


def test_an_object_that_does_not_open_is_tried_again_when_it_is_next_asked_for() -> None:
    answers = iter([TimeoutError("silence"), "open"])

    def open_object(path: str) -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    handles = LastUsed(open_object, limit=256)
    with pytest.raises(TimeoutError, match="silence"):
        handles.get("bucket/key")
    assert handles.get("bucket/key") == "open"


def test_the_objects_used_last_stay_open() -> None:
    opened: list[str] = []

    def open_object(path: str) -> str:
        opened.append(path)
        return path

    handles = LastUsed(open_object, limit=2)
    for path in ("a", "b", "a", "c", "a", "b"):
        assert handles.get(path) == path
    assert opened == ["a", "b", "c", "b"]
