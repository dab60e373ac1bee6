"""Sentences about masks that make scores say little."""

from segtrain.dataset.mask_warnings import cautions


def test_a_set_of_sound_masks_needs_no_caution() -> None:
    assert cautions([0.2, 0.1], [0, 1], ["a", "b"]) == []
    assert cautions([], []) == []


def test_black_masks_alone_are_named_as_such() -> None:
    (line,) = cautions([0.0] * 20, [0, 1] * 10, [f"p{number}" for number in range(20)])
    assert line == "warning: all 20 masks have no object; a dice of 1 says nothing: see to the masks"


def test_masks_without_an_object_are_counted_and_a_fold_of_mostly_such_is_named() -> None:
    lines = cautions([0.0, 0.3, 0.0, 0.0, 0.0, 0.2], [0, 0, 1, 1, 1, 1], list("abcdef"))
    assert lines[0].startswith("warning: 4 of 6 masks have no object (a, c, d, ...): a picture without an object")
    assert lines[1].startswith("warning: in fold 1 3 of 4 masks have no object; its scores say little")
    assert len(lines) == 2


def test_masks_that_are_all_object_are_named_too() -> None:
    lines = cautions([1.0, 0.3], [0, 1])
    assert lines[0].startswith("warning: 1 of 2 masks have nothing but object: a network that finds objects everywhere")
    assert lines[1].startswith("warning: in fold 0 1 of 1 masks have nothing but object")
