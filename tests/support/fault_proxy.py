"""A proxy between a client and an S3 server that breaks requests on demand and forwards the rest byte for byte.

    with FaultProxy(server.endpoint) as proxy:
        proxy.inject(Fault("truncate_rst", match="part-00003", times=2))
        ...  # a client whose endpoint is proxy.endpoint

The client signs its requests for the proxy's address, which stays in the Host header, so signatures hold at the server.
Bodies are held in memory whole: a fault is placed by bytes, and no body in the tests is large.
"""

import asyncio
import contextlib
import dataclasses
import re
import socket
import struct
import threading
from collections import Counter
from typing import NamedTuple
from urllib.parse import urlsplit

KINDS = ("slow_down", "delay", "reset", "truncate_fin", "truncate_rst", "stall", "flip")
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is to go wrong with the next `times` requests (None: with all) of one method.

    `slow_down` answers 503 in the server's place and `delay` answers `delay_s` late. The others strike after
    `after_bytes` of the body: of the answer's to a GET, of the request's to a PUT. By default that is the middle of it;
    for `reset` and `stall` it is before anything is sent. `truncate_*` and `reset` end the connection, the first
    with a FIN or an RST; `stall` keeps it and sends no more; `flip` changes one bit and goes on. A PUT whose whole body
    passes before the fault is carried out by the server: then it is the answer that is lost.
    """

    kind: str
    method: str = "GET"
    times: int | None = 1
    after_bytes: int | None = None
    delay_s: float = 0.5
    match: str = ""
    """Part of the path that the request must have, query included."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind} is no kind of fault; they are {', '.join(KINDS)}")

    def cut(self, body: bytes) -> int:
        """After how many bytes of the body the fault strikes."""
        if self.after_bytes is not None:
            return min(self.after_bytes, len(body))
        return 0 if self.kind in ("reset", "stall") else len(body) // 2


class Request(NamedTuple):
    """A request as it came in; `range` is its Range header, empty where it has none."""

    method: str
    path: str
    range: str


class _Message(NamedTuple):
    head: bytes
    body: bytes


class _BrokenError(Exception):
    """The connection to the client is to end here, with a FIN or an RST."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


class FaultProxy:
    """Serves on a free port of this machine, in a thread of its own, while its `with` block lasts."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self.requests: list[Request] = []
        self.injected: Counter[str] = Counter()
        self._faults: list[tuple[Fault, int | None]] = []
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._connections: set[asyncio.Task[None]] = set()

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        started = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(started, self._loop).result()
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def inject(self, fault: Fault) -> None:
        """Let requests that come from now on meet a fault; of several that match, the one injected first."""
        with self._lock:
            self._faults.append((fault, fault.times))

    def clear(self) -> None:
        """Forget all faults, and the requests and counts so far."""
        with self._lock:
            self._faults.clear()
            self.requests.clear()
            self.injected.clear()

    def _next_fault(self, request: Request) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            for place, (fault, left) in enumerate(self._faults):
                if left != 0 and fault.method == request.method and fault.match in request.path:
                    self._faults[place] = (fault, None if left is None else left - 1)
                    self.injected[fault.kind] += 1
                    return fault
        return None

    async def _stop(self) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests of one connection, one after another."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except _BrokenError as broken:
            _close(writer, reset=broken.reset)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            _close(writer, reset=True)  # either side went away in the middle, or the proxy stops
        finally:
            self._connections.discard(task)
            _close(writer, reset=False)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False where the client has no more."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        if _header(head, "Expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request = _Message(head, await _read_body(reader, head))
        method, path, _ = head.decode("latin-1").split(" ", 2)
        fault = self._next_fault(Request(method, path, _header(head, "Range")))
        answer = await (self._broken(fault, request, reader, writer) if fault else self._forward(request))
        writer.write(answer.head + answer.body)
        await writer.drain()
        return "close" not in (_header(request.head, "Connection") + _header(answer.head, "Connection")).lower()

    async def _broken(
        self, fault: Fault, request: _Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> _Message:
        """The answer to a request with a fault; raises where the fault ends the connection."""
        if fault.kind == "slow_down":
            head = f"HTTP/1.1 503 Slow Down\r\nContent-Length: {len(SLOW_DOWN)}\r\n\r\n".encode()
            return _Message(head, b"" if fault.method == "HEAD" else SLOW_DOWN)
        if fault.kind == "delay":
            await asyncio.sleep(fault.delay_s)
            return await self._forward(request)
        if fault.method == "PUT":
            return await self._break_request(fault, request, reader)
        if fault.kind in ("reset", "stall") and fault.after_bytes is None:
            return await _break_off(fault, reader)
        answer = await self._forward(request)
        cut = fault.cut(answer.body)
        if fault.kind == "flip":
            return _Message(answer.head, _flipped(answer.body, cut))
        writer.write(answer.head + answer.body[:cut])
        await writer.drain()
        return await _break_off(fault, reader)

    async def _break_request(self, fault: Fault, request: _Message, reader: asyncio.StreamReader) -> _Message:
        cut = fault.cut(request.body)
        if fault.kind == "flip":
            return await self._forward(_Message(request.head, _flipped(request.body, cut)))
        if fault.after_bytes is not None and cut == len(request.body):
            await self._forward(request)  # it is carried out, and the answer lost
        elif cut:
            _, upstream = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
            upstream.write(request.head + request.body[:cut])
            await upstream.drain()
            _close(upstream, reset=fault.kind != "truncate_fin")
        return await _break_off(fault, reader)

    async def _forward(self, request: _Message) -> _Message:
        """The server's answer, over a connection of its own, so that no earlier request can have spoiled it."""
        reader, writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        try:
            writer.write(request.head + request.body)
            await writer.drain()
            head = b"HTTP/1.1 100 "
            while head.startswith(b"HTTP/1.1 100 "):  # the client has been told to continue already
                head = await reader.readuntil(b"\r\n\r\n")
            empty = request.head.startswith(b"HEAD ") or head.split(b" ", 2)[1] in (b"204", b"304")
            return _Message(head, b"" if empty else await _read_body(reader, head))
        finally:
            _close(writer, reset=False)


async def _break_off(fault: Fault, reader: asyncio.StreamReader) -> _Message:
    """End the connection, at once or, after a stall, when the client has given up."""
    if fault.kind == "stall":
        await reader.read()
    raise _BrokenError(reset=fault.kind in ("reset", "truncate_rst"))


async def _read_body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """The body that a head announces, as it is on the wire: chunked bodies keep the lengths of their chunks."""
    if "chunked" not in _header(head, "Transfer-Encoding").lower():
        return await reader.readexactly(int(_header(head, "Content-Length") or 0))
    body, size = b"", 1
    while size:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        body += line + await reader.readexactly(size + 2)
    return body


def _header(head: bytes, name: str) -> str:
    found = re.search(rb"(?im)^" + name.encode() + rb":[ \t]*(.*?)[ \t]*\r$", head)
    return found.group(1).decode("latin-1") if found else ""


def _flipped(body: bytes, place: int) -> bytes:
    """The body with the lowest bit of one byte changed."""
    place = max(0, min(place, len(body) - 1))
    return body[:place] + bytes(byte ^ 1 for byte in body[place : place + 1]) + body[place + 1 :]


def _close(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    """End a connection: what was written is sent and then a FIN, or an RST at once."""
    if reset:
        with contextlib.suppress(OSError):  # where the other side has closed it before
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
