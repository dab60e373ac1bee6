"""A submission sent to Kaggle with its own client, and the score that comes back.

The client's own upload waits for an answer without a limit, begins again after a cut connection, and prints errors
that hold the upload's signed URL. So only the first and the last of the three requests are the client's. The file goes
up here, by the protocol of Google's storage (https://cloud.google.com/storage/docs/performing-resumable-uploads): after
a break the storage is asked how much it has, and gets the rest.
"""

import contextlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any

import requests

from segtrain.config import StorageConfig
from segtrain.errors import StorageError, UserError
from segtrain.kaggle.client import COMPETITIONS_URL, MESSAGE_CHARACTERS, PASSING, KaggleClient, kaggle_said
from segtrain.storage.files import Storage, is_remote, local_path

logger = logging.getLogger(__name__)

COPY_BYTES = 8 * 2**20
EXPLAINED = (401, 403, 404)
"""Statuses that `KaggleClient` explains."""
EXPIRED = (404, 410)
"""Statuses of the storage once an upload's URL has expired."""
INCOMPLETE = 308


def submit(
    file: str, competition: str, message: str, storage: Storage, *, poll_s: float = 5.0, patience_s: float = 3600.0
) -> float:
    """Send a file (a path or an `s3://` URL) to a competition, wait until it is scored, and return the public score.

    The user's key is found where the `kaggle` command finds it. Kaggle is asked for the score every `poll_s` seconds.

    Errors raised:

    - `UserError` for a key that is missing or refused, for a competition that is not there or whose rules are not
      accepted, and, in Kaggle's words, for a file that Kaggle refuses or cannot score;
    - `FileNotFoundError` where there is no file;
    - `StorageError` where Kaggle could not be reached for `deadline_s` of the storage's settings, or has not scored the
      file in `patience_s`.
    """
    with _opened(file, storage) as content:
        client = KaggleClient(competition, storage.config)
        logger.info("uploading %s", file)
        upload = _Upload(client, content, PurePosixPath(file).name, storage.config)
        client.retried(upload.attempt, reached=content.tell)
        logger.info("uploaded %s, %.1f MiB", file, upload.bytes / 2**20)
        number = _create(client, upload.token, message[:MESSAGE_CHARACTERS])
    logger.info("Kaggle has taken it as submission %d; waiting for its score", number)
    return _score(client, number, poll_s, patience_s)


def check_access(competition: str, storage: Storage) -> None:
    """Find what `submit` would find wrong with the user's key or the competition, before there is a file.

    Raises `UserError` and `StorageError` as `submit` does.
    """
    _submissions(KaggleClient(competition, storage.config))


class _Upload:
    """An upload to the storage behind Kaggle; afterwards Kaggle knows the file by `token`."""

    def __init__(self, client: KaggleClient, content: IO[bytes], name: str, limits: StorageConfig) -> None:
        self.bytes = os.fstat(content.fileno()).st_size
        self.token = ""
        self._client, self._content, self._name, self._limits = client, content, name, limits
        self._url = ""

    def attempt(self) -> None:
        """Send what the storage does not have yet. Raises `requests.RequestException` where that breaks off."""
        missing_from = 0
        if self._url:
            missing_from = self._put(f"bytes */{self.bytes}", None)
        else:
            self._start()
        if missing_from < self.bytes:
            self._content.seek(missing_from)
            if self._put(f"bytes {missing_from}-{self.bytes - 1}/{self.bytes}", self._content) < self.bytes:
                raise requests.ConnectionError("the storage has not got all of it")

    def _start(self) -> None:
        from kagglesdk.competitions.types.competition_api_service import ApiStartSubmissionUploadRequest

        request = ApiStartSubmissionUploadRequest()
        request.competition_name, request.file_name = self._client.competition, self._name
        request.content_length, request.last_modified_epoch_seconds = self.bytes, int(time.time())
        with _refusals(self._client), self._client.api.build_kaggle_client() as kaggle:
            response = kaggle.competitions.competition_api_client.start_submission_upload(request)
        self.token, self._url = response.token, response.create_url

    def _put(self, span: str, body: IO[bytes] | None) -> int:
        """Send the rest of the file, or only ask; returns how many bytes the storage has then."""
        response = requests.put(
            self._url,
            data=body,
            headers={"Content-Range": span},
            timeout=self._limits.timeout_s,
            allow_redirects=False,  # 308 is an answer here
        )
        if response.status_code == INCOMPLETE:
            kept = re.fullmatch(r"bytes=0-(\d+)", response.headers.get("Range", ""))
            return int(kept[1]) + 1 if kept else 0
        if response.status_code in EXPIRED:
            self._url = ""
            raise requests.ConnectionError("the upload has expired", request=response.request)
        if response.status_code >= 500 or response.status_code in PASSING:
            raise requests.HTTPError(request=response.request, response=response)
        if not response.ok:
            raise UserError(
                f"Kaggle's storage refuses {self._name} ({self.bytes / 2**20:.1f} MiB): {kaggle_said(response)}; "
                f"see what {COMPETITIONS_URL}/{self._client.competition} says of the size of a submission"
            )
        return self.bytes


def _create(client: KaggleClient, token: str, message: str) -> int:
    """Make a submission of an uploaded file; returns its number.

    A submission counts against the day's limit, so one that was made though its answer was lost is not made again.
    """
    from kagglesdk.competitions.types.competition_api_service import ApiCreateSubmissionRequest

    request = ApiCreateSubmissionRequest()
    request.competition_name, request.blob_file_tokens = client.competition, token
    request.submission_description = message
    earlier = {one.ref for one in _submissions(client)}

    def attempt() -> int:
        listed = client.api.competition_submissions(client.competition)
        mine = [one.ref for one in listed if one.ref not in earlier and one.description == message]
        if mine:
            return int(max(mine))
        with _refusals(client), client.api.build_kaggle_client() as kaggle:
            return int(kaggle.competitions.competition_api_client.create_submission(request).ref)

    return client.retried(attempt)


def _submissions(client: KaggleClient) -> list[Any]:
    """The user's latest submissions to the competition, 20 at most."""
    return list(client.retried(lambda: client.api.competition_submissions(client.competition)))


def _score(client: KaggleClient, number: int, poll_s: float, patience_s: float) -> float:
    """Kaggle's public score of a submission, once there is one."""
    from kagglesdk.competitions.types.submission_status import SubmissionStatus

    url = f"{COMPETITIONS_URL}/{client.competition}/submissions"
    until_s = time.monotonic() + patience_s
    while True:
        found = next((one for one in _submissions(client) if one.ref == number), None)
        if found is not None and found.status == SubmissionStatus.ERROR:
            said = " ".join(found.error_description.split())[:MESSAGE_CHARACTERS].rstrip(".")
            raise UserError(f"Kaggle could not score submission {number}: {said or 'it does not say why'}; see {url}")
        if found is not None and found.status == SubmissionStatus.COMPLETE and found.public_score:
            return float(found.public_score)
        if time.monotonic() + poll_s > until_s:
            raise StorageError(f"Kaggle has not scored submission {number} in {patience_s:.0f} s; look for it at {url}")
        time.sleep(poll_s)


@contextlib.contextmanager
def _refusals(client: KaggleClient) -> Iterator[None]:
    """Turn what Kaggle refuses in words, like a file or one more submission on a day, into `UserError`."""
    try:
        yield
    except requests.HTTPError as error:
        response = error.response
        if response is None or response.status_code >= 500 or response.status_code in (*EXPLAINED, *PASSING):
            raise
        raise UserError(
            f"Kaggle refuses the submission to '{client.competition}': {kaggle_said(response)}; "
            f"see {COMPETITIONS_URL}/{client.competition}/submissions"
        ) from None


@contextlib.contextmanager
def _opened(file: str, storage: Storage) -> Iterator[IO[bytes]]:
    """The file for reading; one in object storage is first copied into an unnamed local one."""
    size = storage.size(file)
    if size == 0:
        raise UserError(f"{file} is empty; write the submission again")
    if not is_remote(file):
        with local_path(file).open("rb") as content:
            yield content
        return
    with tempfile.TemporaryFile() as copy:
        for start in range(0, size, COPY_BYTES):
            copy.write(storage.read_range(file, start, min(COPY_BYTES, size - start)))
        copy.seek(0)
        yield copy
