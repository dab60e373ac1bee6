"""Panels and contact sheets: sizes, colours of right and wrong, odd input."""

import numpy as np
import pytest
from PIL import Image

from segtrain.panels import FALSE_NEGATIVE, FALSE_POSITIVE, GAP, OUTLINE, PANEL_WIDTH, Colour, contact_sheet, panel


def _picture(height: int, width: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _disc(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.hypot(x - width / 2, y - height / 2) < height / 4


def _has(sheet: Image.Image, colour: Colour, box: tuple[int, int, int, int]) -> bool:
    return bool((np.asarray(sheet.crop(box)) == colour).all(axis=-1).any())


def _difference_box(sheet: Image.Image, width: int, height: int) -> tuple[int, int, int, int]:
    """Where the fourth cell of a panel lies: under the bar of 28 and the line of 22 pixels."""
    return sheet.width - GAP - width, 50, sheet.width - GAP, 50 + height


@pytest.mark.parametrize(("height", "width"), [(1280, 1918), (256, 256), (96, 128), (7, 5), (900, 300)])
def test_a_panel_holds_four_cells_and_is_never_wider_than_the_limit(height: int, width: int) -> None:
    truth = _disc(height, width)
    sheet = panel(_picture(height, width), truth, truth.astype(np.float32), title="fold 0, epoch 3")
    assert sheet.mode == "RGB"
    assert sheet.width <= PANEL_WIDTH
    assert sheet.width == 4 * min(width, (PANEL_WIDTH - 5 * GAP) // 4) + 5 * GAP


def test_a_perfect_prediction_shows_no_error_colour() -> None:
    truth = _disc(96, 128)
    sheet = panel(_picture(96, 128), truth, truth.astype(np.float32))
    box = _difference_box(sheet, 128, 96)
    assert not _has(sheet, FALSE_POSITIVE, box)
    assert not _has(sheet, FALSE_NEGATIVE, box)


@pytest.mark.parametrize(("probability", "shown", "hidden"), [
    (1.0, FALSE_POSITIVE, FALSE_NEGATIVE),
    (0.0, FALSE_NEGATIVE, FALSE_POSITIVE),
])  # fmt: skip
def test_each_kind_of_error_has_its_own_colour(probability: float, shown: Colour, hidden: Colour) -> None:
    sheet = panel(_picture(96, 128), _disc(96, 128), np.full((96, 128), probability, np.float32))
    box = _difference_box(sheet, 128, 96)
    assert _has(sheet, shown, box)
    assert not _has(sheet, hidden, box)


def test_the_threshold_decides_what_counts_as_found() -> None:
    truth, probability = np.zeros((96, 128), bool), np.full((96, 128), 0.4, np.float32)
    low, high = (panel(_picture(96, 128), truth, probability, threshold=threshold) for threshold in (0.4, 0.5))
    assert _has(low, FALSE_POSITIVE, _difference_box(low, 128, 96))
    assert not _has(high, FALSE_POSITIVE, _difference_box(high, 128, 96))


def test_a_title_wider_than_the_bar_does_not_run_into_the_score() -> None:
    truth = _disc(96, 128)
    short, long = (panel(_picture(96, 128), truth, truth.astype(np.float32), title=text) for text in ("a", "a" * 500))
    score = (short.width - GAP - 60, 0, short.width, 28)
    np.testing.assert_array_equal(np.asarray(short.crop(score)), np.asarray(long.crop(score)))


def test_a_panel_does_not_change_its_input() -> None:
    image, truth = _picture(96, 128), _disc(96, 128)
    before = image.copy()
    panel(image, truth, truth.astype(np.float32))
    np.testing.assert_array_equal(image, before)


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="sizes differ"):
        panel(_picture(96, 128), _disc(96, 128), np.zeros((48, 64), np.float32))


def test_a_contact_sheet_outlines_masks_and_takes_pictures_of_any_size_with_or_without_mask() -> None:
    grey = np.full((120, 160, 3), 90, np.uint8)
    with_mask = contact_sheet([(grey, _disc(120, 160), "a"), (_picture(300, 100), None, "b" * 300)], 2)
    without = contact_sheet([(grey, None, "a"), (_picture(300, 100), None, "b" * 300)], 2)
    first = (0, 0, with_mask.width // 2, 240)
    assert _has(with_mask, OUTLINE, first)
    assert not _has(without, OUTLINE, first)
    assert with_mask.size == without.size


def test_a_contact_sheet_grows_by_rows_and_is_no_wider_than_its_pictures() -> None:
    item = (_picture(120, 160), None, "")
    one, three, five = (contact_sheet([item] * count, 3) for count in (1, 3, 5))
    assert one.width < three.width == five.width
    assert one.height == three.height < five.height


def test_an_empty_contact_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match="needs pictures"):
        contact_sheet([], 4)
