"""A local server that speaks the calls of Kaggle that the `kaggle` client makes, for downloads and for submissions.

The client finds it as its HTTP proxy (`KaggleServer.environment`), so it stands in for Kaggle's API, which knows the
user's key, and for the storage behind it, which is another host and knows signed URLs alone; whatever else a test
asks of the internet is refused here. Facts of the protocol: kaggle 2.2.4, kagglesdk 0.1.37.
"""

import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.kaggle_state import Competition, Fault, Request, Submission, Upload

API_HOST, STORAGE_HOST = "localhost", "storage.invalid"
LAST_MODIFIED = "Tue, 26 Sep 2017 17:32:10 GMT"
STALL_S = 60.0
RULES_MESSAGE = "You must accept this competition's rules before you'll be able to download files."


class KaggleServer:
    """The state of a running server; tests fill it and look into it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.token = "t0ken-of-the-test"
        self.user, self.key = "tester", "k3y-of-the-test"
        self.competitions: dict[str, Competition] = {}
        self.faults: deque[Fault] = deque()
        """For the answers of the storage to come, one each."""
        self.requests: list[Request] = []
        self.submissions: list[Submission] = []
        self.listed: Counter[int] = Counter()
        """Number of a submission -> how often it was listed."""
        self.uploads: dict[str, Upload] = {}
        """By their tokens."""
        self.stopped = threading.Event()
        self.stalling = threading.Event()
        """Set once an answer has fallen silent."""

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that lead the client here, with `home` in place of the user's folder, and without any key."""
        proxies = {f"{kind}_proxy": self.url for kind in ("http", "https", "all")} | {"no_proxy": ""}
        return {
            **proxies,
            **{name.upper(): value for name, value in proxies.items()},
            "HOME": str(home),
            "KAGGLE_CONFIG_DIR": str(home / ".kaggle"),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        }

    def asked(self, path: str) -> list[Request]:
        """The requests whose path ends so."""
        return [request for request in self.requests if request.path.endswith(path)]


@contextlib.contextmanager
def serve_kaggle() -> Iterator[KaggleServer]:
    """A server on a free loopback port for the block."""
    http = _Server(("127.0.0.1", 0), _Handler)
    server = http.kaggle
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        http.shutdown()
        http.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], handler: type["_Handler"]) -> None:
        super().__init__(address, handler)
        self.kaggle = KaggleServer(self.server_port)

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients hang up as they like
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _RefusedError(Exception):
    """An answer in the form of Kaggle's errors."""

    def __init__(self, code: int, message: str) -> None:
        self.code, self.message = code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.send_error(403, "the tests stay on this machine")
        self.close_connection = True

    def do_POST(self) -> None:
        self._answer()

    do_GET = do_PUT = do_POST  # noqa: N815

    def _answer(self) -> None:
        url = urlsplit(self.path)
        body = json.loads(self._body() or b"{}") if self.command == "POST" else {}
        path = unquote(url.path)
        self._kaggle.requests.append(
            Request(
                self.command,
                url.hostname or "",
                path,
                body,
                self.headers.get("Content-Range" if self.command == "PUT" else "Range"),
                self.headers.get("Authorization"),
            )
        )
        try:
            if url.hostname == STORAGE_HOST and self.command == "PUT":
                self._store(path)
            elif url.hostname == STORAGE_HOST:
                self._send_file(path, parse_qs(url.query))
            elif url.hostname == API_HOST and (call := re.fullmatch(r"/api/v1/([\w.]+)/(\w+)", path)):
                self._call(call[2], body)
            else:
                raise _RefusedError(502, f"{url.hostname} is not served here")
        except _RefusedError as refused:
            self._send_json({"code": refused.code, "message": refused.message}, refused.code)

    # The API.

    @property
    def _kaggle(self) -> KaggleServer:
        return self.server.kaggle

    def _call(self, name: str, body: Mapping[str, Any]) -> None:
        call = getattr(self, f"_call_{name}", None)
        if call is None:
            raise _RefusedError(404, f"no method {name}")
        if name != "IntrospectToken":
            basic = base64.b64encode(f"{self._kaggle.user}:{self._kaggle.key}".encode()).decode()
            if self.headers.get("Authorization") not in (f"Bearer {self._kaggle.token}", f"Basic {basic}"):
                raise _RefusedError(401, "Unauthenticated")
        call(body)

    def _call_IntrospectToken(self, body: Mapping[str, Any]) -> None:  # noqa: N802
        known = body.get("token") == self._kaggle.token
        self._send_json({"active": True, "username": self._kaggle.user, "userId": 1} if known else {"active": False})

    def _call_ListDataFiles(self, body: Mapping[str, Any]) -> None:  # noqa: N802
        competition = self._competition(body)
        names = sorted(competition.files | competition.sizes)
        start, count = int(body.get("pageToken") or 0), min(int(body.get("pageSize") or 20), 3)
        files = [
            {
                "ref": name,
                "name": name,
                "totalBytes": competition.sizes.get(name, len(competition.files.get(name, b""))),
            }
            for name in names[start : start + count]
        ]
        more = start + count < len(names)
        self._send_json({"files": files, "nextPageToken": str(start + count) if more else ""})

    def _call_DownloadDataFile(self, body: Mapping[str, Any]) -> None:  # noqa: N802
        competition = self._competition(body)
        if not competition.rules_accepted:
            raise _RefusedError(403, RULES_MESSAGE)
        if body["fileName"] not in competition.files:
            raise _RefusedError(404, "File not found")
        self._redirect(f"{body['competitionName']}/{body['fileName']}")

    def _call_DownloadDataFiles(self, body: Mapping[str, Any]) -> None:  # noqa: N802
        raise _RefusedError(400, "no test may ask for all files")

    def _call_StartSubmissionUpload(self, body: Mapping[str, Any]) -> None:  # noqa: N802
        if not self._competition(body).rules_accepted:
            raise _RefusedError(403, "You cannot submit until you accept the competition rules")
        token = f"blob-{len(self._kaggle.uploads) + 1}"
        self._kaggle.uploads[token] = Upload(body["fileName"])
        self._send_json({"token": token, "createUrl": f"http://{STORAGE_HOST}/upload/{token}"})

    def _call_CreateSubmission(self, body: Mapping[str, Any]) -> None:  # noqa: N802
        competition, upload = self._competition(body), self._kaggle.uploads[body["blobFileTokens"]]
        if competition.refusal is not None:
            raise _RefusedError(*competition.refusal)
        description = body.get("submissionDescription", "")
        self._kaggle.submissions.append(
            Submission(body["competitionName"], description, upload.file_name, upload.content)
        )
        if competition.lost_answers:
            competition.lost_answers -= 1
            self.close_connection = True
        else:
            self._send_json({"message": "Successfully submitted", "ref": len(self._kaggle.submissions)})

    def _call_ListSubmissions(self, body: Mapping[str, Any]) -> None:  # noqa: N802
        self._competition(body)
        taken = [
            self._state(number, one)
            for number, one in enumerate(self._kaggle.submissions, 1)
            if one.competition == body["competitionName"]
        ]
        self._send_json({"submissions": taken[::-1]})

    def _state(self, number: int, submission: Submission) -> dict[str, Any]:
        competition = self._kaggle.competitions[submission.competition]
        self._kaggle.listed[number] += 1
        state: dict[str, Any] = {"status": "COMPLETE", "publicScore": competition.score}
        if self._kaggle.listed[number] <= competition.pending:
            state = {"status": "PENDING"}
        elif competition.score is None:
            state = {"status": "ERROR", "errorDescription": "Submission must have 100064 rows."}
        return state | {
            "ref": number,
            "fileName": submission.file_name,
            "date": "2024-01-01T00:00:00Z",
            "description": submission.description,
        }

    def _competition(self, body: Mapping[str, Any]) -> Competition:
        try:
            return self._kaggle.competitions[body["competitionName"]]
        except KeyError:
            raise _RefusedError(404, "Competition not found") from None

    # The storage.

    def _redirect(self, path: str) -> None:
        self.send_response(302)
        self.send_header("Location", f"http://{STORAGE_HOST}/{quote(path)}?X-Signature={_sign(path)}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _store(self, path: str) -> None:
        """Take a file, or the rest of one, or say how much of it is there."""
        upload = self._kaggle.uploads.get(path.rpartition("/")[2])
        fault = self._kaggle.faults.popleft() if self._kaggle.faults else Fault()
        if upload is None or fault.status is not None:
            self._body()
            raise _RefusedError(fault.status or 404, "one of the storage's bad days")
        part = re.fullmatch(r"bytes (?:\*|(\d+)-\d+)/(\d+)", self.headers.get("Content-Range") or "")
        start = int((part and part[1]) or len(upload.content) * bool(part))
        end = fault.cut_after if fault.stall_after is None else fault.stall_after
        content = self._body(end)
        upload.content = upload.content[:start] + content
        if end is not None:
            self._kaggle.stopped.wait(STALL_S * (fault.stall_after is not None))
            self.close_connection = True
        elif part is None or len(upload.content) == int(part[2]):
            self._send_json({})
        else:
            self.send_response(308)
            if upload.content:
                self.send_header("Range", f"bytes=0-{len(upload.content) - 1}")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _body(self, end: int | None = None) -> bytes:
        """The request's body, or the first bytes of it."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0) if end is None else end)

    def _send_file(self, path: str, query: Mapping[str, list[str]]) -> None:
        _, competition, name = path.split("/", 2)
        content = self._kaggle.competitions[competition].files[name]
        if query.get("X-Signature") != [_sign(path[1:])]:
            raise _RefusedError(403, "wrong signature")
        fault = self._kaggle.faults.popleft() if self._kaggle.faults else Fault()
        if fault.status is not None:
            self._send_bytes(fault.status, b"<Error>one of the storage's bad days</Error>", {}, fault)
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        headers = {"ETag": tag, "Last-Modified": LAST_MODIFIED, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted is None or self.headers.get("If-Range") not in (None, tag):
            self._send_bytes(200, content, headers, fault)
        elif int(wanted[1]) >= len(content):
            self._send_bytes(416, b"", headers, fault)
        else:
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send_bytes(206, content[start:], headers, fault)

    def _send_bytes(self, status: int, content: bytes, headers: Mapping[str, str], fault: Fault) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(content) if fault.announce is None else fault.announce))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        end = fault.cut_after if fault.stall_after is None else fault.stall_after
        with contextlib.suppress(ConnectionError):  # the client may have seen enough
            self.wfile.write(content[:end])
            self.wfile.flush()
            if fault.stall_after is not None:
                self._kaggle.stalling.set()
                self._kaggle.stopped.wait(STALL_S)
        if end is not None or fault.announce is not None:
            self.close_connection = True

    def _send_json(self, value: Mapping[str, Any], status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _sign(path: str) -> str:
    return hashlib.md5(f"signed {path}".encode()).hexdigest()
