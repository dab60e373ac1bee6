"""Kaggle's own client made fit for a job: silent, never exiting, with timeouts, a deadline and plain errors.

By itself the client (kaggle 2.2.4)

- signs in while it is imported;
- prints help, closes stdin and exits where there are no keys;
- waits for an answer without a limit;
- may save an error page as the file after a cut connection;
- puts signed URLs into its messages.

So `kaggle` is imported only when a `KaggleClient` is made, each download is one attempt of the client's behind a fresh
URL, and only Kaggle's own sentence is shown of a message.
"""

import contextlib
import functools
import io
import json
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests

from segtrain.config import StorageConfig
from segtrain.errors import StorageError, UserError

logger = logging.getLogger(__name__)

KEYS_URL = "https://www.kaggle.com/settings/api"
COMPETITIONS_URL = "https://www.kaggle.com/competitions"
PAGE_FILES = 200
LONGEST_WAIT_S = 20.0
MESSAGE_CHARACTERS = 300
MARKER_SUFFIX = ".kaggle-partial"
MARKER_BYTES = 4096
PASSING = (408, 425, 429)
"""HTTP statuses below 500 that are worth another attempt."""
VERBOSE = ("VERBOSE", "VERBOSE_OUTPUT")
"""With these set, the client prints keys and reads each body into memory to print it."""
NEW_KEY = f"make one at {KEYS_URL} and put it into KAGGLE_API_TOKEN or ~/.kaggle/access_token"

T = TypeVar("T")


class KaggleClient:
    """What jobs ask of Kaggle for one competition, with the user's own key, found where the `kaggle` command finds it.

    Every call, making the client included, raises `UserError` for a key that is missing or refused and for rules that
    are not accepted, and `StorageError` where Kaggle could not be reached, or did not get on, for `limits.deadline_s`.
    """

    def __init__(self, competition: str, limits: StorageConfig) -> None:
        """`api` is Kaggle's own object, signed in; calls of it go through `retried`."""
        self.competition, self._limits = competition, limits
        self.api = self.retried(self._sign_in)

    def files(self) -> dict[str, int]:
        """Name -> bytes of the competition's files, whether its rules are accepted or not.

        Raises `UserError` also where there is no such competition.
        """
        found: dict[str, int] = {}
        token: str | None = None
        while token != "":
            listing = functools.partial(self.api.competition_list_files, self.competition, token, PAGE_FILES)
            page = self.retried(listing)
            found.update((file.name, file.total_bytes) for file in page.files)
            token = page.next_page_token
        return found

    def download(self, name: str, part: Path, admit: Callable[[int], None]) -> None:
        """Download a file of the competition to `part`, going on with what an earlier call or process left there.

        `admit` is called before anything is written, with the file's bytes (0 where Kaggle does not say), and may
        raise. Until the file is whole, a marker beside it, `<part>.kaggle-partial`, identifies the part.
        """
        _forget_odd_marker(_marker(part))
        self.retried(lambda: self._attempt(name, part, admit), reached=lambda: size_of(part))

    def _sign_in(self) -> Any:
        try:
            with _without(VERBOSE):
                from kaggle.api.kaggle_api_extended import KaggleApi
        except OSError as error:
            raise UserError(
                f"kaggle's client cannot use its folder {error.filename}; set KAGGLE_CONFIG_DIR to one that it can"
            ) from None
        api = KaggleApi()
        api.args = ["--local"] if os.environ.get("KAGGLE_API_ENVIRONMENT") == "LOCALHOST" else []
        build = api.build_kaggle_client
        api.build_kaggle_client = lambda: _with_timeouts(build(), self._limits.timeout_s)
        try:
            api.authenticate()
        except SystemExit:
            raise UserError(_no_key()) from None
        return api

    def _attempt(self, name: str, part: Path, admit: Callable[[int], None]) -> None:
        from kagglesdk.competitions.types.competition_api_service import ApiDownloadDataFileRequest

        request = ApiDownloadDataFileRequest()
        request.competition_name, request.file_name = self.competition, name
        with self.api.build_kaggle_client() as kaggle:
            response = kaggle.competitions.competition_api_client.download_data_file(request)
            with contextlib.closing(response):
                admit(int(response.headers.get("Content-Length") or 0))
                try:
                    # One attempt: its own retries keep the URL, which expires, and may save an error page.
                    self.api.download_file(
                        response,
                        str(part),
                        kaggle.http_client(),
                        quiet=True,
                        resume=True,
                        max_retries=0,
                        timeout=self._limits.timeout_s,
                    )
                except requests.RequestException as error:
                    error.request = error.request or response.request  # a body that breaks off does not know it
                    raise
                except ValueError:  # another size than announced: whatever was saved, it is not the file
                    for path in (part, _marker(part)):
                        path.unlink(missing_ok=True)
                    raise _NotTheFileError(request=response.request) from None

    def retried(self, call: Callable[[], T], reached: Callable[[], int] = lambda: 0) -> T:
        """Call again, after a wait with jitter, until `deadline_s` has passed in which `reached` did not rise."""
        start_s, most, attempt = time.monotonic(), reached(), 0
        while True:
            try:
                with _silence():
                    return call()
            except (requests.RequestException, json.JSONDecodeError) as error:
                fault, response = error, getattr(error, "response", None)
            if response is not None and response.status_code < 500 and response.status_code not in PASSING:
                raise self._explained(response)
            if reached() > most:
                start_s, most, attempt = time.monotonic(), reached(), 0
            wait_s = random.uniform(0, min(2.0**attempt, LONGEST_WAIT_S))
            passed_s = time.monotonic() - start_s
            if passed_s + wait_s >= self._limits.deadline_s:
                raise StorageError(
                    f"{_host(fault)} {_reason(fault)} ({attempt + 1} attempts in {passed_s:.0f} s); "
                    "see to the network, then run the same command again: it goes on from here"
                )
            logger.info("%s %s; trying again", _host(fault), _reason(fault))
            time.sleep(wait_s)
            attempt += 1

    def _explained(self, response: requests.Response) -> Exception:
        """What an answer says that another attempt will not change."""
        said = kaggle_said(response)
        match response.status_code:
            case 401:
                return UserError(f"Kaggle refuses the key: {said}; {NEW_KEY}")
            case 403:
                return UserError(
                    f"Kaggle keeps '{self.competition}' closed: {said}; see that source.competition is right, and "
                    f"accept the rules at {COMPETITIONS_URL}/{self.competition}/rules with the account of your key"
                )
            case 404:
                return UserError(
                    f"Kaggle has no competition '{self.competition}', or not what was asked of it: {said}; set "
                    f"source.competition to the last part of the competition's address, {COMPETITIONS_URL}/NAME"
                )
        return StorageError(f"{_host_of(response.url)} answered {response.status_code}: {said}")


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _marker(part: Path) -> Path:
    """Where the client keeps what identifies a part."""
    return part.with_name(f"{part.name}{MARKER_SUFFIX}")


def _forget_odd_marker(marker: Path) -> None:
    """Remove a marker that is not one, since deep JSON would break the client; the part is then begun again."""
    with contextlib.suppress(FileNotFoundError, ValueError, RecursionError), marker.open("rb") as file:
        text = file.read(MARKER_BYTES + 1)
        if len(text) <= MARKER_BYTES and isinstance(json.loads(text), dict):
            return
    marker.unlink(missing_ok=True)


class _NotTheFileError(requests.RequestException):
    """What came was not the file that Kaggle had announced."""


def _with_timeouts(client: Any, timeout_s: float) -> Any:
    """The client, which now waits at most `timeout_s` for an answer, and for each part of it."""
    http = client.http_client()
    http._init_session()  # the session is made late and there is no other way to it
    http._session.send = functools.partial(http._session.send, timeout=timeout_s)
    return client


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hide the client's output, and keep it from closing stdin."""
    stdin, sys.stdin = sys.stdin, io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        sys.stdin = stdin


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """The environment without these variables."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _no_key() -> str:
    from kagglesdk import get_access_token_from_env

    token, source = get_access_token_from_env()
    if token is None:
        return f"there is no key for Kaggle; {NEW_KEY} (a kaggle.json with user name and key serves too)"
    return f"Kaggle does not know the key in {'~/.kaggle/' * (source == 'access_token')}{source}; {NEW_KEY}"


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"answered {response.status_code}"
    if isinstance(error, _NotTheFileError | json.JSONDecodeError):
        return "sent something else than was asked for"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "did not answer in time"
    return f"could not be reached or broke off ({type(error).__name__})"


def _host(error: Any) -> str:
    request = getattr(error, "request", None)
    return _host_of(request.url) if request is not None else "Kaggle"


def _host_of(url: str | None) -> str:
    """Scheme and host: the rest may hold a signature."""
    scheme, host, *_ = urlsplit(url or "")
    return f"{scheme}://{host.rpartition('@')[2]}"


def kaggle_said(response: requests.Response) -> str:
    """Kaggle's own words, or the status in words; never the URL."""
    try:
        said = str(response.json()["message"])
    except (ValueError, KeyError, TypeError, requests.RequestException):
        said = response.reason or str(response.status_code)
    return " ".join(said.split())[:MESSAGE_CHARACTERS].rstrip(".")
