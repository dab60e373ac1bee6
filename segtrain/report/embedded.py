"""Panels as they stand in a page: JPEG in `data:` URLs."""

import base64
import io
from typing import NamedTuple

from PIL import Image

from segtrain.panels import file_bytes, prediction_and_difference

PANEL_QUALITY = 84
THUMBNAIL_BYTES = 16_000
ALL_THUMBNAILS_BYTES = 1_600_000
"""Base64 makes a third more of it; plotly takes 4.9 MB of a page's 8 MB."""
SHOWN_WIDTH = 160
THUMBNAILS = ((360, 80), (320, 76), (240, 72), (160, 68), (120, 60))
"""Widths in pixels and JPEG qualities, tried in turn; a dense screen shows two pixels for one."""


class Thumbnail(NamedTuple):
    """Prediction and difference of a panel, small."""

    url: str
    height: int
    """In pixels of the page, where it is `SHOWN_WIDTH` wide: a browser lays the table out before it decodes it."""


def panel_url(png: bytes) -> str | None:
    """A whole panel; None for a file that is no picture."""
    sheet = _opened(png)
    return None if sheet is None else _url(_jpeg(sheet, PANEL_QUALITY))


def thumbnail(png: bytes, at_most_bytes: int) -> Thumbnail | None:
    """The thumbnail of a panel; None where it cannot be that small, or is no picture."""
    sheet = _opened(png)
    if sheet is None:
        return None
    cells = prediction_and_difference(sheet)
    for width, quality in THUMBNAILS:
        height = max(1, round(cells.height * width / cells.width))
        jpeg = _jpeg(cells.resize((width, height), Image.Resampling.LANCZOS), quality)
        if len(jpeg) <= at_most_bytes:
            return Thumbnail(_url(jpeg), max(1, round(cells.height * SHOWN_WIDTH / cells.width)))
    return None


def bytes_each(thumbnails: int) -> int:
    """How large each of so many thumbnails may be."""
    return min(THUMBNAIL_BYTES, ALL_THUMBNAILS_BYTES // max(1, thumbnails))


def _opened(png: bytes) -> Image.Image | None:
    try:
        return Image.open(io.BytesIO(png)).convert("RGB")
    except (OSError, SyntaxError, ValueError):  # Pillow raises all three; a report goes without the picture
        return None


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    return file_bytes(picture, "JPEG", quality=quality, optimize=True)


def _url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
