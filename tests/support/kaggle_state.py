"""What a local Kaggle holds, what befalls its answers, and what it was asked; `kaggle_server.py` serves it."""

import dataclasses
import io
import zipfile
from typing import Any


@dataclasses.dataclass
class Competition:
    """A competition's files; one with no content is listed with its size, and answers with an error when asked for."""

    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    """What is listed where it is not the length of the content."""
    rules_accepted: bool = True
    refusal: tuple[int, str] | None = None
    """Status and words with which a submission is refused, once its file is there."""
    lost_answers: int = 0
    """So many submissions are taken without an answer."""
    pending: int = 0
    """How often a submission is listed before it is scored."""
    score: str | None = "0.99"
    """None where a submission cannot be scored."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """What befalls one answer of the storage: an error status, or an end, or a silence, after so many bytes.

    Bytes that it sends, or, where a file is uploaded, that it has got and keeps.
    """

    status: int | None = None
    cut_after: int | None = None
    stall_after: int | None = None
    announce: int | None = None
    """Content-Length, in place of the true one."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What the server was asked: `path` is the call's name, or the path of a stored file."""

    method: str
    host: str
    path: str
    body: dict[str, Any]
    range: str | None
    authorization: str | None


@dataclasses.dataclass
class Upload:
    """A file on its way to the storage."""

    file_name: str
    content: bytes = b""


@dataclasses.dataclass(frozen=True)
class Submission:
    """A submission that has been taken: to which competition, its description and the file's bytes."""

    competition: str
    description: str
    file_name: str
    content: bytes


def zipped(files: dict[str, bytes]) -> bytes:
    """An archive as Kaggle offers them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()
