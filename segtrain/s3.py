"""Files in S3-compatible object storage; used through `segtrain.storage` only.

Ranges are read with `pyarrow.fs`, whose C++ client does not hold Python's lock while many threads read; everything else
goes through s3fs. Both take keys from AWS's standard chain (environment, profile, instance role) and the endpoint and
region from `StorageConfig`, then from the environment. Their own retries are kept short: `retrying` decides.

Messages never hold a key or a secret.
"""

import errno
import os
import random
import re
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.fs
import s3fs
from botocore.exceptions import BotoCoreError, ClientError
from s3fs.core import S3_RETRYABLE_ERRORS

from segtrain.config import StorageConfig
from segtrain.errors import StorageError, UserError

T = TypeVar("T")

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 10.0
CONNECT_TIMEOUT_S = 10.0
KEYS_PER_DELETE = 1000

WRONG_PERMISSION = "access is denied; use a key that has this permission, or another bucket"
WRONG_SECRET = "the secret key does not belong to the access key; check AWS_SECRET_ACCESS_KEY"
NO_KEYS = "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
OLD_TOKEN = "the session token is not valid any more; get new credentials"
WRONG_REGION = "the bucket is in another region; set storage.region or AWS_REGION"
WRONG_NAME = "this is no valid bucket name; use 3 to 63 small letters, digits, dots and hyphens"

# What only the user can mend, by the service's code or by botocore's class.
MISTAKES = {
    "NoSuchBucket": "the bucket does not exist; check its name, the region and AWS_ENDPOINT_URL",
    "InvalidBucketName": WRONG_NAME,
    "ParamValidationError": WRONG_NAME,
    "AccessDenied": WRONG_PERMISSION,
    "ACCESS_DENIED": WRONG_PERMISSION,
    "403": WRONG_PERMISSION,
    "InvalidAccessKeyId": "the server does not know the access key; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": WRONG_SECRET,
    "NoCredentialsError": NO_KEYS,
    "PartialCredentialsError": NO_KEYS,
    "ProfileNotFound": "the profile in AWS_PROFILE does not exist; name one that does",
    "ExpiredToken": OLD_TOKEN,
    "InvalidToken": OLD_TOKEN,
    "PermanentRedirect": WRONG_REGION,
    "AuthorizationHeaderMalformed": WRONG_REGION,
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
}
# Answers to a HEAD request have no body, so these do not say whether it is the key, the secret or the permission.
WITHOUT_REASON = ("403", "ACCESS_DENIED")
# 4xx answers that another attempt can change; the rest of them are final.
PASSING_STATUS = (408, 409, 425, 429)
PASSING_CODES = ("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch")
# All that the two clients raise; anything else is a bug and passes through.
FAULTS = (OSError, BotoCoreError, ClientError, *S3_RETRYABLE_ERRORS)


def retrying(
    action: Callable[[], T],
    is_passing: Callable[[Exception], bool],
    deadline_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    uniform: Callable[[float, float], float] = random.uniform,
) -> T:
    """What `action` returns, called again after an error that `is_passing` until `deadline_s` would be over.

    The wait before attempt n + 1 is uniform in [0, min(10 s, 0.2 s x 2^(n-1))]: "full jitter", so that many workers
    that were throttled together do not come back together (Brooker, Exponential Backoff And Jitter, AWS 2015).
    The deadline decides whether another attempt starts; it does not cut one short. Raises the last error.
    """
    started = clock()
    longest_s = FIRST_WAIT_S
    while True:
        try:
            return action()
        except Exception as error:
            wait_s = uniform(0.0, longest_s)
            if not is_passing(error) or clock() - started + wait_s >= deadline_s:
                raise
        sleep(wait_s)
        longest_s = min(LONGEST_WAIT_S, 2 * longest_s)


class S3Files:
    """The methods of `segtrain.storage.Storage` on `s3://bucket/key` URLs."""

    def __init__(self, config: StorageConfig) -> None:
        environment = os.environ
        self._config = config
        self._endpoint = (
            config.endpoint_url or environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
        )
        self._region = config.region or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")

    def read_bytes(self, url: str) -> bytes:
        data: bytes = self._run(url, lambda: self._objects.cat_file(_key(url)))
        return data

    def read_range(self, url: str, offset: int, length: int) -> bytes:
        def read() -> bytes:
            with self._ranges.open_input_file(_key(url)) as file:
                if file.size() < offset + length:
                    raise _TooShortError(f"{url} ends before byte {offset + length}: it has {file.size()} bytes")
                data: bytes = file.read_at(length, offset)
            if len(data) != length:
                raise OSError(f"{len(data)} of {length} bytes came")
            return data

        return self._run(url, read)

    def write_bytes(self, url: str, data: bytes) -> None:
        self._run(url, lambda: self._objects.pipe_file(_key(url), data))

    def write_file(self, url: str, local: Path) -> None:
        self._run(url, lambda: self._objects.put_file(str(local), _key(url)))

    def exists(self, url: str) -> bool:
        try:
            self._run(url, lambda: self._objects.info(_path(url)))
        except FileNotFoundError:
            return False
        return True

    def list(self, url: str) -> list[str]:
        folder = _path(url) + "/"
        try:
            paths: list[str] = self._run(url, lambda: self._objects.ls(folder, detail=False))
        except FileNotFoundError:
            return []
        return sorted(path.removeprefix(folder) for path in paths if path.startswith(folder) and path != folder)

    def delete(self, url: str) -> None:
        self._run(url, lambda: self._delete_all(_key(url)))

    def size(self, url: str) -> int:
        facts: dict[str, Any] = self._run(url, lambda: self._objects.info(_key(url)))
        if facts["type"] == "directory":
            raise _missing(url)
        return int(facts["size"])

    @cached_property
    def _objects(self) -> Any:
        """s3fs without its caches of listings and instances, which would hide other processes' writes."""
        filesystem = s3fs.S3FileSystem(
            endpoint_url=self._endpoint,
            client_kwargs={"region_name": self._region},
            config_kwargs={
                "connect_timeout": min(CONNECT_TIMEOUT_S, self._config.timeout_s),
                "read_timeout": self._config.timeout_s,
                "retries": {"total_max_attempts": 1, "mode": "standard"},
                "s3": {"addressing_style": "path" if self._endpoint else "auto"},
            },
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        filesystem.retries = 1
        return filesystem

    @cached_property
    def _ranges(self) -> Any:
        return pyarrow.fs.S3FileSystem(
            endpoint_override=self._endpoint,
            region=self._region,
            connect_timeout=min(CONNECT_TIMEOUT_S, self._config.timeout_s),
            request_timeout=self._config.timeout_s,
            retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=2),
        )

    def _delete_all(self, path: str) -> None:
        """Delete the object at `bucket/key` and all below it.

        Folders are deleted like objects, deepest first: S3 itself has none, but SeaweedFS goes on listing empty ones.
        s3fs's own `rm` does not tell when the server refused to delete one of many.
        """
        bucket, _, key = path.partition("/")
        files = [found.partition("/")[2] for found in self._objects.find(path + "/")]
        folders = {file[: end + 1] for file in files for end, letter in enumerate(file) if letter == "/"}
        inside = {folder for folder in folders if folder.startswith(f"{key}/")} | {f"{key}/"}
        keys = [key, *files, *sorted(inside, key=len, reverse=True)]
        for start in range(0, len(keys), KEYS_PER_DELETE):
            batch = [{"Key": each} for each in keys[start : start + KEYS_PER_DELETE]]
            answer = self._objects.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
            for error in answer.get("Errors", []):
                raise ClientError({"Error": error}, "DeleteObjects")

    def _run(self, url: str, action: Callable[[], T]) -> T:
        """`action` under the retries, its last error turned into one of ours."""
        try:
            return retrying(action, is_passing, self._config.deadline_s)
        except (UserError, StorageError):
            raise
        except FAULTS as error:
            code = error_code(error)
            if code in WITHOUT_REASON or (isinstance(error, FileNotFoundError) and not code):
                code = self._reason(url) or code
            if code in MISTAKES:
                raise UserError(f"{url}: {MISTAKES[code]}") from None
            if isinstance(error, FileNotFoundError):
                raise _missing(url) from None
            waited = f"; tried for {self._config.deadline_s:g} s" if is_passing(error) else ""
            raise StorageError(f"{url}: {error or type(error).__name__}{waited}") from error

    def _reason(self, url: str) -> str:
        """The service's code for what is wrong with this bucket and these keys; empty where listing works."""
        bucket, _, key = _path(url).partition("/")
        try:
            self._objects.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
        except FAULTS as error:
            return error_code(error)
        return ""


class _TooShortError(StorageError):
    """An object that ends before the range that was asked for: no other attempt makes it longer."""


def error_code(error: BaseException) -> str:
    """S3's code, such as `NoSuchBucket`, pyarrow's, such as `ACCESS_DENIED`, or botocore's class; else empty."""
    for each in (error, error.__cause__):
        if isinstance(each, ClientError):
            return str(each.response.get("Error", {}).get("Code", ""))
        if isinstance(each, BotoCoreError):
            return type(each).__name__
    found = re.search(r"AWS Error ([A-Z_]+)", str(error))
    return found.group(1) if found else ""


def is_passing(error: Exception) -> bool:
    """Whether another attempt may succeed: throttling, timeouts, broken connections, cut bodies, 5xx answers."""
    if isinstance(error, (FileNotFoundError, PermissionError, StorageError, UserError)):
        return False
    if error_code(error) in MISTAKES:
        return False
    answer = error if isinstance(error, ClientError) else error.__cause__
    if isinstance(answer, ClientError) and error_code(answer) not in PASSING_CODES:
        status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        return status >= 500 or status in PASSING_STATUS
    return isinstance(error, FAULTS)


def _missing(url: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)


def _path(url: str) -> str:
    """`bucket/key` as the filesystems want it. Raises `UserError` for what is no bucket."""
    path = url.removeprefix("s3://").strip("/")
    bucket = path.partition("/")[0]
    if not bucket:
        raise UserError(f"{url} names no bucket; write s3://bucket/key")
    if "@" in bucket or ":" in bucket:
        raise UserError("an s3:// URL holds no keys; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    return path


def _key(url: str) -> str:
    """Like `_path`, for what must name something in a bucket: nothing here writes or deletes a whole bucket."""
    path = _path(url)
    if "/" not in path:
        raise UserError(f"{url} names only a bucket; write s3://bucket/key")
    return path
