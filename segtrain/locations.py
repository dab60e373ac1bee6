"""What a given path or URL stands for: a place on this machine, one in object storage, or none."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from segtrain.errors import UserError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?:/|$)|([sS]3):")
_CREDENTIALS = re.compile(r"(\w:/{1,2})[^/\s'\"]*@")


def is_remote(location: str) -> bool:
    """Whether it is in object storage. Raises `UserError` for what is neither a local path nor an S3 URL."""
    found = _SCHEME.match(location)
    if found is None:
        if "\0" in location:
            raise UserError(f"{location!r} holds a NUL character, which no path can have")
        return False
    if not location.startswith("s3://"):
        raise UserError(_no_s3_url(location, found[1] or found[2]))
    bucket, *names = location.removeprefix("s3://").rstrip("/").split("/")
    if "@" in bucket or ":" in bucket:
        raise UserError("an s3:// URL holds no keys; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    if not bucket:
        raise UserError(f"{location} names no bucket; write s3://bucket/key")
    if any(name in ("", ".", "..") for name in names):
        plain = "/".join([bucket, *(name for name in names if name not in ("", ".", ".."))])
        raise UserError(f"{location} has an empty name, . or .. between its slashes; write s3://{plain}")
    return True


def _no_s3_url(location: str, scheme: str) -> str:
    told = without_credentials(location)
    if scheme.lower() == "s3":
        return f"{told} is no S3 URL; write s3://bucket/key, or ./{told} for a local path"
    if location[len(scheme) :].startswith("://"):
        return f"{scheme}:// is not supported; give a local path or an s3://bucket/key URL"
    return f"{told} looks like a URL of {scheme}:; give an s3://bucket/key URL, or ./{told} for a local path"


def bucket_and_key(url: str) -> tuple[str, str]:
    """The parts of an S3 URL; the key is empty where it names the bucket alone. Raises `UserError` for another URL."""
    if not is_remote(url):
        raise UserError(f"{url} is no S3 URL; write s3://bucket/key")
    bucket, _, key = url.removeprefix("s3://").strip("/").partition("/")
    return bucket, key


def local_path(location: str) -> Path:
    """The local path, with `~` as the home folder. Raises `UserError` for a user without one, and for a URL."""
    if is_remote(location):
        raise UserError(f"{location} is no local path; give one on this machine")
    if not location.startswith("~"):
        return Path(location)
    home = os.path.expanduser(location)
    if home == location:  # which is how it says that there is none
        user = location.partition("/")[0].removeprefix("~")
        missing = f"there is no user '{user}'" if user else "this user has no home folder"
        raise UserError(f"{location}: {missing}; write the whole path, or ./{location} for a folder of that name")
    return Path(home)


def check_given(places: Mapping[str, str | None]) -> None:
    """Raise `UserError`, with the name of the argument or field, for a location that is none."""
    for name, place in places.items():
        if place == "":
            raise UserError(f"{name} is empty; give a local path or an s3:// URL")
        try:
            if place is not None and not is_remote(place):
                local_path(place)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None


def within(folder: str, location: str) -> str:
    """A location that may be relative to `folder`: a whole path, one from `~` and a URL stay what they are."""
    if location.startswith(("/", "~")) or is_remote(location):
        return location
    return join(folder, location)


def join(location: str, *parts: str) -> str:
    """The location with path segments put after it, separated by single slashes."""
    tail = "/".join(part.strip("/") for part in parts if part.strip("/"))
    if not location or not tail:
        return location or tail
    return f"{location.rstrip('/')}/{tail}"


def check_endpoint(url: str) -> str:
    """The address of an S3 server, as it is. Raises `UserError`, which never shows a password, for what is none."""
    if "@" in url:
        raise UserError(
            "a server's address holds no user and password; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
    if scheme is None:
        raise UserError(f"{url!r} does not say how the server is reached; write http://{url} or https://{url}")
    try:
        parts = urlsplit(url)
        is_sound = (
            scheme[1] in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not parts.query
            and not parts.fragment
        )
    except ValueError:  # a port that is no number, or half of an IPv6 address
        is_sound = False
    if not is_sound or re.search(r"[\s\x00-\x1f]", url):
        raise UserError(f"{url!r} is no address of a server; write http://HOST:PORT or https://HOST")
    return url


def without_credentials(text: str) -> str:
    """`text` with the user and password of every URL in it replaced by three stars."""
    return _CREDENTIALS.sub(r"\1***@", text)
