"""The client of S3: what is retried and for how long, with a clock of its own and with a server that refuses."""

import http.server
import threading
from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from segtrain.config import StorageConfig
from segtrain.errors import StorageError
from segtrain.s3 import error_code, is_passing, retrying
from segtrain.storage import Storage


class _Throttled(http.server.BaseHTTPRequestHandler):
    """Answers 503 SlowDown a number of times, then serves four bytes."""

    refusals = 0
    requests = 0

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(b"data")

    def _answer(self, body: bytes) -> None:
        type(self).requests += 1
        if type(self).requests <= type(self).refusals:
            xml = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            self.send_response(503)
            self.send_header("Content-Length", str(len(xml)))
            self.end_headers()
            self.wfile.write(xml if body else b"")
            return
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def throttled(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Throttled]]:
    """A server that can be told to refuse, with the environment leading to it."""
    handler = type("Handler", (_Throttled,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testkey")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
    yield handler
    server.shutdown()
    server.server_close()


def test_throttling_passes_unnoticed(throttled: type[_Throttled]) -> None:
    storage = Storage(StorageConfig(deadline_s=20.0))
    throttled.refusals = 2
    assert storage.read_bytes("s3://bucket/key") == b"data"
    throttled.requests = 0
    assert storage.read_range("s3://bucket/key", 0, 4) == b"data"


def test_throttling_without_end_names_the_url_at_the_deadline(throttled: type[_Throttled]) -> None:
    throttled.refusals = 10**9
    storage = Storage(StorageConfig(deadline_s=0.5))
    for read in (storage.read_bytes, lambda url: storage.read_range(url, 0, 4)):
        with pytest.raises(StorageError, match=r"s3://bucket/key: .*tried for 0\.5 s"):
            read("s3://bucket/key")


class _Clock:
    """Time that passes only in sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waits_s: list[float] = []

    def sleep(self, wait_s: float) -> None:
        self.waits_s.append(wait_s)
        self.now_s += wait_s


@given(deadline_s=st.floats(0.0, 500.0), share=st.floats(0.0, 1.0))
def test_waits_grow_to_a_bound_and_end_before_the_deadline(deadline_s: float, share: float) -> None:
    clock = _Clock()
    attempts = 0

    def fail() -> None:
        nonlocal attempts
        attempts += 1
        if attempts > 1000:
            raise KeyboardInterrupt  # waits of nothing never reach a deadline
        raise OSError("again")

    with pytest.raises((OSError, KeyboardInterrupt)):
        retrying(
            fail,
            lambda error: True,
            deadline_s,
            clock=lambda: clock.now_s,
            sleep=clock.sleep,
            uniform=lambda low, high: low + share * (high - low),
        )
    assert clock.now_s <= deadline_s
    assert all(wait <= min(10.0, 0.2 * 2**turn) for turn, wait in enumerate(clock.waits_s))


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
    assert error_code(OSError("AWS Error SLOW_DOWN during GetObject operation: wait")) == "SLOW_DOWN"
