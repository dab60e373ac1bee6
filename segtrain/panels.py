"""Pictures of results for people: input, truth, prediction and difference side by side, and contact sheets.

NumPy and Pillow only. Colours are those of Okabe and Ito, told apart by colour-blind readers: what is found is blue,
what is wrongly found is vermilion, what is missed is yellow.
"""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segtrain.metrics import dice, hard_counts

FOUND = (0, 114, 178)
FALSE_POSITIVE = (213, 94, 0)
FALSE_NEGATIVE = (240, 228, 66)
OUTLINE = (235, 80, 185)
"""A mask's edge: a colour that says neither right nor wrong, and that few pictures hold."""
PAPER, INK, FAINT = (255, 255, 255), (24, 24, 24), (110, 110, 110)

PANEL_WIDTH = 1600
"""Largest width of a panel, in pixels."""
SHEET_CELL = 320
"""Width of a contact sheet's cells, in pixels."""
GAP = 6
BAR, LINE = 28, 22
"""Heights of a panel's title, and of the lines of text above and below its cells."""
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def panel(
    image: NDArray[np.uint8],
    truth: NDArray[np.generic],
    probability: NDArray[np.floating],
    *,
    threshold: float = 0.5,
    title: str = "",
) -> Image.Image:
    """One row of four cells: input, truth laid over it, prediction laid over it, difference.

    `image` is uint8 (H, W, 3), `truth` (H, W) with non-zero for the object, `probability` (H, W) in 0..1; what reaches
    `threshold` counts as object. The bar on top holds `title` and the hard dice of this picture at the size given. The
    result is RGB, at most `PANEL_WIDTH` wide. Raises `ValueError` where the three sizes differ.
    """
    if image.shape[:2] != truth.shape or truth.shape != probability.shape:
        raise ValueError(f"sizes differ: image {image.shape}, truth {truth.shape}, probability {probability.shape}")
    wanted, found = truth != 0, probability >= threshold
    difference = np.repeat(image.mean(axis=2, keepdims=True) * 0.55 + 90, 3, axis=2).astype(np.uint8)  # grey as yet
    for where, colour, share in (
        (wanted & found, FOUND, 0.35),
        (found & ~wanted, FALSE_POSITIVE, 1.0),
        (wanted & ~found, FALSE_NEGATIVE, 1.0),
    ):
        difference = _tint(difference, where, colour, share)
    width = min(image.shape[1], (PANEL_WIDTH - 5 * GAP) // 4)
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    plain = _scaled(image, width, height)
    cells = (
        ("input", plain),
        ("truth", _outlined(plain, wanted, 0.5)),
        ("prediction", _outlined(plain, found, 0.5)),
        ("difference", _scaled(difference, width, height)),
    )
    font = ImageFont.load_default(15)
    sheet = Image.new("RGB", (4 * width + 5 * GAP, BAR + LINE + height + LINE + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    score = f"dice {dice(hard_counts(wanted, found)):.4f}"
    left = sheet.width - GAP - round(draw.textlength(score, font))
    draw.text((left, 6), score, INK, font)
    draw.text((GAP, 6), _shorten(title, draw, font, left - 3 * GAP), INK, font)
    for k, (name, cell) in enumerate(cells):
        x = GAP + k * (width + GAP)
        draw.text((x, BAR + 2), name, FAINT, ImageFont.load_default(13))
        sheet.paste(cell, (x, BAR + LINE))
    _legend(draw, sheet.width - GAP, BAR + LINE + height + 4)
    return sheet


def prediction_and_difference(sheet: Image.Image) -> Image.Image:
    """The right half of what `panel` drew, without its text."""
    return sheet.crop((sheet.width // 2 + GAP // 2, BAR + LINE, sheet.width - GAP, sheet.height - LINE - GAP))


def contact_sheet(
    items: Sequence[tuple[NDArray[np.uint8], NDArray[np.generic] | None, str]], columns: int = 4
) -> Image.Image:
    """Pictures in a grid of `columns`, each with its mask's outline and its caption underneath.

    An item is (uint8 (H, W, 3), mask (H, W) non-zero for the object or None, caption); sizes may differ from item to
    item. Returns RGB. Raises `ValueError` where there is nothing to show or `columns` is below 1.
    """
    if not items or columns < 1:
        raise ValueError(f"a contact sheet needs pictures and at least one column; got {len(items)} and {columns}")
    columns = min(columns, len(items))
    heights = [max(1, round(image.shape[0] * SHEET_CELL / image.shape[1])) for image, _, _ in items]
    rows = [range(start, min(start + columns, len(items))) for start in range(0, len(items), columns)]
    caption, font = 22, ImageFont.load_default(13)
    row_heights = [max(heights[k] for k in row) + caption + GAP for row in rows]
    sheet = Image.new("RGB", (GAP + columns * (SHEET_CELL + GAP), GAP + sum(row_heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, row_height in zip(rows, row_heights, strict=True):
        for column, k in enumerate(row):
            image, mask, text = items[k]
            x = GAP + column * (SHEET_CELL + GAP)
            cell = _scaled(image, SHEET_CELL, heights[k])
            sheet.paste(cell if mask is None else _outlined(cell, mask, 0.2), (x, top))
            draw.text((x, top + heights[k] + 3), _shorten(text, draw, font, SHEET_CELL), INK, font)
        top += row_height
    return sheet


def overlay(image: NDArray[np.uint8], mask: NDArray[np.generic]) -> Image.Image:
    """`image`, uint8 (H, W, 3), as RGB with its mask (H, W), non-zero for the object, tinted and outlined."""
    return _outlined(Image.fromarray(image), mask, 0.35)


def file_bytes(picture: Image.Image, kind: str, **options: int) -> bytes:
    """A picture as a file of this kind (`PNG`, `JPEG`), with options as `Image.save` takes them."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _tint(image: NDArray[np.uint8], where: NDArray[np.bool_], colour: Colour, share: float) -> NDArray[np.uint8]:
    """`image` with `share` of `colour` mixed in where `where` holds."""
    tinted = image.copy()
    tinted[where] = (image[where] * (1 - share) + np.array(colour) * share).astype(np.uint8)
    return tinted


def _scaled(image: NDArray[np.uint8], width: int, height: int) -> Image.Image:
    """Scale down with a box filter, which keeps thin errors visible as a tint, and up to the nearest pixel."""
    filter_ = Image.Resampling.BOX if width < image.shape[1] else Image.Resampling.NEAREST
    return Image.fromarray(image).resize((width, height), filter_)


def _outlined(cell: Image.Image, mask: NDArray[np.generic], share: float) -> Image.Image:
    """`cell` with the outline of `mask` two pixels wide, and `share` of blue mixed into the object."""
    full = Image.fromarray((mask != 0).astype(np.uint8) * 255)
    small = np.asarray(full.resize(cell.size, Image.Resampling.BOX)) >= 128
    padded = np.pad(small, 1, mode="edge")
    rows, columns = small.shape
    inside, outside = small.copy(), small.copy()
    for dy in range(3):
        for dx in range(3):
            shifted = padded[dy : dy + rows, dx : dx + columns]
            inside &= shifted
            outside |= shifted
    tinted = _tint(np.asarray(cell), small, FOUND, share)
    return Image.fromarray(_tint(tinted, outside & ~inside, OUTLINE, 1.0))


def _legend(draw: ImageDraw.ImageDraw, right: int, top: int) -> None:
    """Colour keys, ending at `right`."""
    font = ImageFont.load_default(13)
    entries = (("found", FOUND), ("false positive", FALSE_POSITIVE), ("false negative", FALSE_NEGATIVE))
    for text, colour in reversed(entries):
        right -= round(draw.textlength(text, font))
        draw.text((right, top), text, INK, font)
        draw.rectangle((right - 18, top + 3, right - 6, top + 13), fill=colour, outline=FAINT)
        right -= 34


def _shorten(text: str, draw: ImageDraw.ImageDraw, font: Font, width: int) -> str:
    """`text`, with its end replaced by an ellipsis if it is wider than `width` pixels."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text}...", font) > width:
        text = text[:-1]
    return f"{text}..."
