"""What a setting that is a text may be: any text, a location, a local folder, or the address of a server."""

import re
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, Field

from segtrain.errors import UserError, shown
from segtrain.locations import check_endpoint, is_remote


def _sound(text: str) -> str:
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("it holds NUL or what is not UTF-8; rename what it stands for")
    return text


def _in_our_words(check: Callable[[str], object]) -> Callable[[str], str]:
    """A check of pydantic's from one that raises `UserError`."""

    def checked(text: str) -> str:
        try:
            check(_sound(text))
        except UserError as error:
            raise ValueError(str(error)) from None
        return text

    return checked


def _local(text: str) -> None:
    if is_remote(text):
        raise UserError(f"{text} is no local folder; give one on this machine")


def _name(text: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise UserError(
            f"'{shown(text)}' is no name for a folder; begin it with a letter or a digit, and use only these, and '.', "
            "'_' and '-'"
        )


def _fingerprint(text: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{16}", text):
        raise UserError(
            f"'{shown(text)}' is no fingerprint; give the 16 digits (0-9, a-f) that `jobs/data.py inspect` shows"
        )


Text = Annotated[str, Field(min_length=1), AfterValidator(_sound)]
Location = Annotated[str, Field(min_length=1), AfterValidator(_in_our_words(is_remote))]
"""A local path, from `~` where it begins so, or an `s3://` URL."""
LocalFolder = Annotated[str, Field(min_length=1), AfterValidator(_in_our_words(_local))]
FolderName = Annotated[str, AfterValidator(_in_our_words(_name))]
Fingerprint = Annotated[str, AfterValidator(_in_our_words(_fingerprint))]
"""Of a version of a data set."""
Endpoint = Annotated[str, Field(min_length=1), AfterValidator(_in_our_words(check_endpoint))]
