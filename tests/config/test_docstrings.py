"""Every setting says what it is: the page of settings is made from this text."""

from collections.abc import Iterator

from segtrain.config import Recipe
from segtrain.config.section import Section


def test_every_field_of_every_section_has_a_text_that_fits_into_a_table() -> None:
    texts = {
        f"{section.__name__}.{name}": field.description
        for section in _sections(Section)
        if section.__module__.startswith("segtrain.")
        for name, field in section.model_fields.items()
    }
    assert f"{Recipe.__name__}.folds" in texts
    assert [name for name, text in texts.items() if not text or not text.strip().endswith(".")] == []
    assert [name for name, text in texts.items() if text is not None and "|" in text] == []


def _sections(parent: type[Section]) -> Iterator[type[Section]]:
    for section in parent.__subclasses__():
        yield section
        yield from _sections(section)
