"""The fault proxy itself: what passes, passes unchanged, and each fault is what its name says."""

import http.client
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.waiting import wait_until

BODY = bytes(range(200))
HEAD = b"HTTP/1.1 200 OK\r\nx-Odd:  spaced \r\nContent-Length: 200\r\n\r\n"
GET = b"GET /bucket/key?x=1&y HTTP/1.1\r\nhost: anywhere\r\nRange: bytes=5-9\r\nX-Odd:a\r\n\r\n"
PUT = b"PUT /bucket/key HTTP/1.1\r\nHost: anywhere\r\nContent-Length: 200\r\n\r\n"


class _Upstream(socketserver.ThreadingTCPServer):
    """Keeps what each connection brings, byte for byte, and gives one answer to it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[bytes] = []
        self.answer = HEAD + BODY


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Upstream)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.rfile.readline()
        body = b""
        try:
            if b"Content-Length: 200" in head:
                body = self.rfile.read(200)
            elif b"chunked" in head:
                while not body.endswith(b"0\r\n\r\n"):
                    body += self.rfile.readline()
        except ConnectionResetError:
            body = b"(reset)"
        self.server.received.append(head + body)
        self.wfile.write(self.server.answer)


@pytest.fixture
def upstream() -> Iterator[_Upstream]:
    with _Upstream() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(upstream: _Upstream) -> Iterator[FaultProxy]:
    with FaultProxy(f"http://127.0.0.1:{upstream.server_address[1]}") as each:
        yield each


def _connect(proxy: FaultProxy) -> socket.socket:
    port = int(proxy.endpoint.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=120)


def _receive(connection: socket.socket, count: int) -> bytes:
    """Up to `count` bytes; fewer where the connection ends before."""
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            break
        data += more
    return data


def _send(proxy: FaultProxy, request: bytes, count: int = len(HEAD + BODY)) -> bytes:
    with _connect(proxy) as connection:
        connection.sendall(request)
        return _receive(connection, count)


def _wait_for(upstream: _Upstream, requests: int) -> list[bytes]:
    wait_until(lambda: len(upstream.received) >= requests)
    return upstream.received


CHUNKED = b"PUT /b/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4;sig=ab\r\nabcd\r\n0\r\n\r\n"


@pytest.mark.parametrize("request_bytes", [GET, PUT + BODY, CHUNKED], ids=["get", "put", "chunked"])
def test_bytes_pass_both_ways_as_they_are(request_bytes: bytes, proxy: FaultProxy, upstream: _Upstream) -> None:
    assert _send(proxy, request_bytes) == HEAD + BODY
    assert upstream.received == [request_bytes]


def test_an_answer_in_chunks_passes_as_it_is(proxy: FaultProxy, upstream: _Upstream) -> None:
    upstream.answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert _send(proxy, GET, len(upstream.answer)) == upstream.answer


def test_requests_of_one_connection_are_handled_one_by_one(proxy: FaultProxy, upstream: _Upstream) -> None:
    proxy.inject(Fault("slow_down"))
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=120)
    statuses = []
    for method in ("HEAD", "GET", "GET", "HEAD"):
        connection.request(method, "/bucket/key")
        answer = connection.getresponse()
        statuses.append((answer.status, len(answer.read())))
    connection.close()
    assert [status for status, _ in statuses] == [200, 503, 200, 200]
    assert [length for _, length in statuses[2:]] == [200, 0]
    assert [each.split()[0] for each in upstream.received] == [b"HEAD", b"GET", b"HEAD"]


def test_a_client_that_waits_to_be_told_is_told_to_continue(proxy: FaultProxy, upstream: _Upstream) -> None:
    upstream.answer = b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + BODY
    head = PUT.replace(b"Host", b"Expect: 100-continue\r\nHost")
    with _connect(proxy) as connection:
        connection.sendall(head)
        assert _receive(connection, 25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert _receive(connection, len(HEAD + BODY)) == HEAD + BODY
    assert upstream.received == [head + BODY]


def test_requests_and_faults_are_counted_until_they_are_cleared(proxy: FaultProxy) -> None:
    proxy.inject(Fault("slow_down", times=2, match="key?x"))
    proxy.inject(Fault("flip", times=None))
    answers = [_send(proxy, each, 12) for each in (PUT + BODY, GET, GET, GET, GET)]
    assert answers == [b"HTTP/1.1 200", b"HTTP/1.1 503", b"HTTP/1.1 503", b"HTTP/1.1 200", b"HTTP/1.1 200"]
    assert proxy.requests == [("PUT", "/bucket/key", "")] + 4 * [("GET", "/bucket/key?x=1&y", "bytes=5-9")]
    assert proxy.injected == {"slow_down": 2, "flip": 2}
    proxy.clear()
    assert _send(proxy, GET) == HEAD + BODY
    assert len(proxy.requests) == 1
    assert not proxy.injected


def test_a_fault_of_no_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="slowdown is no kind of fault"):
        Fault("slowdown")


def test_throttling_is_answered_in_the_servers_place(proxy: FaultProxy, upstream: _Upstream) -> None:
    proxy.inject(Fault("slow_down"))
    answer = _send(proxy, GET, 130)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"<Code>SlowDown</Code>" in answer
    assert upstream.received == []


@pytest.mark.parametrize("request_bytes", [GET, PUT + BODY], ids=["get", "put"])
def test_a_delay_is_all_that_happens(request_bytes: bytes, proxy: FaultProxy, upstream: _Upstream) -> None:
    proxy.inject(Fault("delay", method=request_bytes[:3].decode(), delay_s=0.2))
    started = time.monotonic()
    assert _send(proxy, request_bytes) == HEAD + BODY
    assert time.monotonic() - started >= 0.2
    assert upstream.received == [request_bytes]


def test_a_cut_answer_ends_in_a_fin_or_in_a_reset(proxy: FaultProxy) -> None:
    proxy.inject(Fault("truncate_fin", after_bytes=7))
    assert _send(proxy, GET) == HEAD + BODY[:7]
    proxy.inject(Fault("truncate_fin"))
    assert _send(proxy, GET) == HEAD + BODY[:100]
    for kind in ("truncate_rst", "reset"):
        proxy.inject(Fault(kind))
        with pytest.raises(ConnectionResetError):
            _send(proxy, GET)


def test_a_stalled_connection_stays_open_without_a_word(proxy: FaultProxy) -> None:
    for after_bytes, sent in ((None, b""), (7, HEAD + BODY[:7])):
        proxy.inject(Fault("stall", after_bytes=after_bytes))
        with _connect(proxy) as connection:
            connection.sendall(GET)
            assert _receive(connection, len(sent)) == sent
            connection.settimeout(0.1)
            with pytest.raises(TimeoutError):
                connection.recv(1)


def test_the_proxy_stops_while_a_connection_stalls(upstream: _Upstream) -> None:
    with FaultProxy(f"http://127.0.0.1:{upstream.server_address[1]}") as proxy:
        proxy.inject(Fault("stall"))
        connection = _connect(proxy)
        connection.sendall(GET)
        wait_until(lambda: proxy.requests)
    connection.close()  # the block would not end before, if the proxy waited for it


@pytest.mark.parametrize(("after_bytes", "place"), [(None, 100), (0, 0), (10**6, 199)])
def test_a_flip_changes_one_bit(after_bytes: int | None, place: int, proxy: FaultProxy, upstream: _Upstream) -> None:
    flipped = bytearray(BODY)
    flipped[place] ^= 1
    proxy.inject(Fault("flip", after_bytes=after_bytes))
    assert _send(proxy, GET) == HEAD + flipped
    proxy.inject(Fault("flip", method="PUT", after_bytes=after_bytes))
    assert _send(proxy, PUT + BODY) == HEAD + BODY
    assert upstream.received[1] == PUT + flipped


def test_a_broken_put_reaches_the_server_in_part_or_not_at_all(proxy: FaultProxy, upstream: _Upstream) -> None:
    proxy.inject(Fault("reset", method="PUT"))
    with pytest.raises(ConnectionResetError):
        _send(proxy, PUT + BODY)
    assert upstream.received == []
    proxy.inject(Fault("truncate_fin", method="PUT", after_bytes=7))
    assert _send(proxy, PUT + BODY) == b""
    assert _wait_for(upstream, 1) == [PUT + BODY[:7]]
    proxy.inject(Fault("truncate_rst", method="PUT"))
    with pytest.raises(ConnectionResetError):
        _send(proxy, PUT + BODY)
    assert _wait_for(upstream, 2)[1] in (PUT + b"(reset)", PUT + BODY[:100])


def test_a_put_broken_after_its_body_is_carried_out(proxy: FaultProxy, upstream: _Upstream) -> None:
    proxy.inject(Fault("reset", method="PUT", after_bytes=200))
    with pytest.raises(ConnectionResetError):
        _send(proxy, PUT + BODY)
    assert upstream.received == [PUT + BODY]
