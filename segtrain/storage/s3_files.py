"""The methods of `Storage` in object storage.

Ranges are read with `pyarrow.fs`, whose C++ client does not hold Python's lock while many threads read. Everything else
goes through s3fs. That compares whole objects with the checksum that S3 keeps of them; pyarrow does not, so readers of
ranges check them. Both take keys from AWS's standard chain (environment, profile, instance role), and endpoint and
region from `StorageConfig`, then from the environment. Neither retries: `retrying` does.

Messages never hold a key or a secret.
"""

import asyncio
import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.fs
import s3fs
from botocore.exceptions import ClientError
from fsspec.asyn import sync

from segtrain.config import StorageConfig
from segtrain.errors import ConflictError, ShortFileError, StorageError, UserError, missing_file
from segtrain.locations import bucket_and_key, check_endpoint
from segtrain.storage.last_used import LastUsed
from segtrain.storage.s3_faults import FAULTS, MISTAKES, WITHOUT_REASON, error_code, is_passing
from segtrain.storage.s3_retries import retrying

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0
HANDLES = 256
KEYS_PER_DELETE = 1000
PART_BYTES = 48 * 2**20
"""Bytes of a part; S3 asks for 5 MiB. Objects larger than two parts are sent in parts, each with its own retries."""
PARTS_AT_ONCE = 3
WRITE_MARK = "segtrain-write"
"""Name of the metadata that tells which call wrote an object."""


class S3Files:
    """Files at `s3://bucket/key` URLs, for all threads of this process."""

    def __init__(self, config: StorageConfig) -> None:
        self._config = config
        self.retries = 0
        self._counting = threading.Lock()
        self._endpoint = config.endpoint_url or _endpoint_of(os.environ)
        self._region = config.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        self._handles = LastUsed(lambda path: self._ranges.open_input_file(path), HANDLES)

    def read_bytes(self, url: str) -> bytes:
        return self._run(url, lambda: self._get(_key(url)))[0]

    def read_versioned(self, url: str) -> tuple[bytes, str]:
        return self._run(url, lambda: self._get(_key(url)))

    def read_range(self, url: str, offset: int, length: int) -> bytes:
        path = _key(url)

        def read() -> bytes:
            try:
                handle = self._handles.get(path)
                if handle.size() < offset + length:
                    raise ShortFileError(f"{url} ends before byte {offset + length}: it has {handle.size()} bytes")
                # `read_at` would save a copy, but where it fails it never frees the bytes that it was to fill.
                data: bytes = handle.get_stream(offset, length).read_buffer(length).to_pybytes()
                if len(data) != length:
                    raise OSError(f"{len(data)} of {length} bytes came")
            except OSError:
                self._handles.drop(path)
                raise
            return data

        return self._run(url, read)

    def write_bytes(self, url: str, data: bytes) -> None:
        self._write(url, len(data), lambda start, stop: data[start:stop])

    def write_file(self, url: str, local: Path) -> None:
        def part(start: int, stop: int) -> bytes:
            with local.open("rb") as file:
                file.seek(start)
                return file.read(stop - start)

        self._write(url, local.stat().st_size, part)

    def write_if_version(self, url: str, data: bytes, version: str | None) -> None:
        mark = uuid.uuid4().hex
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}

        def put() -> None:
            try:
                self._call("put_object", _key(url), Body=data, Metadata={WRITE_MARK: mark}, **condition)
            except FAULTS as error:
                if error_code(error) not in ("PreconditionFailed", "NoSuchKey"):
                    raise
                # The client may have sent the request twice: over a connection that had broken, or as another attempt.
                if not self._is_marked(_key(url), mark):
                    raise ConflictError(f"{url} was written by somebody else in the meantime") from None

        self._run(url, put)

    def kind(self, url: str) -> str | None:
        """`file` or `directory`; None where there is neither."""
        with contextlib.suppress(FileNotFoundError):
            return str(self._run(url, lambda: self._objects.info(_path(url)))["type"])
        return None

    def list(self, url: str) -> list[str]:
        return sorted(self._children(url))

    def marks(self, url: str) -> dict[str, str]:
        found = self._children(url).items()
        return {name: f"{facts['size']}-{facts['ETag']}" for name, facts in found if facts["type"] == "file"}

    def delete(self, url: str) -> None:
        self._run(url, lambda: self._delete_all(_key(url)))

    def delete_if_version(self, url: str, version: str | None) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self.read_versioned(url)[1] == version:
                self.delete(url)

    def size(self, url: str) -> int:
        facts: dict[str, Any] = self._run(url, lambda: self._objects.info(_key(url)))
        if facts["type"] == "directory":
            raise missing_file(url)
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
        filesystem.close_session = _close_client
        return filesystem

    @cached_property
    def _ranges(self) -> Any:
        """pyarrow's client. A body that stalls ends up to 6 s after the timeout, as curl takes a mean over 6 s."""
        return pyarrow.fs.S3FileSystem(
            endpoint_override=self._endpoint,
            region=self._region,
            connect_timeout=min(CONNECT_TIMEOUT_S, self._config.timeout_s),
            request_timeout=self._config.timeout_s,
            retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=1),
        )

    def _children(self, url: str) -> dict[str, dict[str, Any]]:
        """Name -> what S3 says of the files and folders directly in a folder; empty where there are none."""
        folder = _path(url) + "/"
        with contextlib.suppress(FileNotFoundError):
            found: list[dict[str, Any]] = self._run(url, lambda: self._objects.ls(folder, detail=True))
            inside = [facts for facts in found if facts["name"].startswith(folder) and facts["name"] != folder]
            return {facts["name"].removeprefix(folder): facts for facts in inside}
        return {}

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """One request about the object at `bucket/key`."""
        bucket, _, key = path.partition("/")
        answer: dict[str, Any] = self._objects.call_s3(method, Bucket=bucket, Key=key, **arguments)
        return answer

    def _get(self, path: str) -> tuple[bytes, str]:
        """The object and its ETag, in one request. s3fs's `cat_file` takes two, and checks no object over 50 MiB."""
        answer = self._call("get_object", path)
        return sync(self._objects.loop, _read_whole, answer["Body"]), answer["ETag"]

    def _write(self, url: str, size: int, part: Callable[[int, int], bytes]) -> None:
        """Write an object of `size` bytes, of which `part` gives those from start to stop."""
        path = _key(url)
        self._handles.drop(path)
        if size <= 2 * PART_BYTES:
            data = part(0, size)
            self._run(url, lambda: self._call("put_object", path, Body=data))
            return
        mark = uuid.uuid4().hex
        answer = self._run(url, lambda: self._call("create_multipart_upload", path, Metadata={WRITE_MARK: mark}))
        upload = {"UploadId": answer["UploadId"]}

        def send(number: int, start: int) -> dict[str, Any]:
            data = part(start, min(start + PART_BYTES, size))
            sent = self._run(url, lambda: self._call("upload_part", path, PartNumber=number, Body=data, **upload))
            return {"PartNumber": number, "ETag": sent["ETag"]}

        def complete(parts: list[dict[str, Any]]) -> None:
            try:
                self._call("complete_multipart_upload", path, MultipartUpload={"Parts": parts}, **upload)
            except FAULTS as error:  # an attempt whose answer was lost leaves no upload to complete
                if error_code(error) != "NoSuchUpload" or not self._is_marked(path, mark):
                    raise

        try:
            starts = range(0, size, PART_BYTES)
            with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
                parts = list(pool.map(send, range(1, len(starts) + 1), starts))
            self._run(url, lambda: complete(parts))
        except BaseException:
            with contextlib.suppress(*FAULTS):  # parts left behind cost money and nothing else; the first error counts
                self._call("abort_multipart_upload", path, **upload)
            raise

    def _is_marked(self, path: str, mark: str) -> bool:
        """Whether the object at `bucket/key` was written with this mark."""
        with contextlib.suppress(FileNotFoundError):
            return bool(self._call("head_object", path).get("Metadata", {}).get(WRITE_MARK) == mark)
        return False

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
            return retrying(action, is_passing, self._config.deadline_s, on_retry=self._count_retry)
        except (UserError, StorageError):
            raise
        except FAULTS as error:
            failure = self._in_our_words(url, error)
        raise failure  # out of the block, or what S3 says of a wrong key would come along as its context

    def _count_retry(self) -> None:
        with self._counting:
            self.retries += 1

    def _in_our_words(self, url: str, error: Exception) -> Exception:
        code = error_code(error)
        if code in WITHOUT_REASON or (isinstance(error, FileNotFoundError) and not code):
            code = self._reason(url) or code
        if code in MISTAKES:
            return UserError(f"{url}: {MISTAKES[code]}")
        if isinstance(error, FileNotFoundError) or code == "NoSuchKey":
            return missing_file(url)
        waited = f"; tried for {self._config.deadline_s:g} s" if is_passing(error) else ""
        failure = StorageError(f"{url}: {error or type(error).__name__}{waited}")
        failure.__cause__ = error
        return failure

    def _reason(self, url: str) -> str:
        """The service's code for what is wrong with this bucket and these keys; empty where listing works."""
        bucket, _, key = _path(url).partition("/")
        try:
            self._objects.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
        except FAULTS as error:
            return error_code(error)
        return ""


def _endpoint_of(environment: Mapping[str, str]) -> str | None:
    """The address that the environment names. Raises `UserError` with the variable's name for what is none."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if environment.get(name):
            try:
                return check_endpoint(environment[name])
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
    return None


async def _read_whole(body: Any) -> bytes:
    """The body of an answer. Raises where it ends early or differs from the object's own checksum."""
    try:
        data: bytes = await body.read()
        return data
    finally:
        body.close()


def _close_client(loop: asyncio.AbstractEventLoop, client: Any) -> None:
    """What s3fs calls when the garbage collector takes it, to close the client that lives in `loop`.

    That may happen in any thread. s3fs closes the client in the loop that runs there, if one does: as in a thread of
    Ray or of a server. The connections belong to their own loop, and the task fails.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # no loop runs in this thread: s3fs then takes the right one
        s3fs.S3FileSystem.close_session(loop, client)
    else:
        asyncio.run_coroutine_threadsafe(client.__aexit__(None, None, None), loop)


def _path(url: str) -> str:
    """`bucket/key` as the filesystems want it. Raises `UserError` for what is no bucket."""
    bucket, key = bucket_and_key(url)
    return f"{bucket}/{key}" if key else bucket


def _key(url: str) -> str:
    """Like `_path`, for what must name something in a bucket: nothing here writes or deletes a whole bucket."""
    path = _path(url)
    if "/" not in path:
        raise UserError(f"{url} names only a bucket; write s3://bucket/key")
    return path
