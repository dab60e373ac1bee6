"""Any recipe file with any overrides becomes a recipe that says what was typed, or an error that names the field."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from segtrain.config import Recipe, flatten, known_fields, load_recipe, override
from tests.support.judging import FEW, MANY, cases, ends_well, sandbox

FIELDS = sorted({*flatten(Recipe().to_dict()), *known_fields({"optimizer": {"kind": "sgd"}, "model": {"kind": "fcn"}})})
TEXT_FIELDS = ("source.path", "source.group_regex", "data.root", "run.storage", "storage.region", "data.node_cache")
ODD = (
    "", " ", "null", "~", "true", "off", "yes", "1:30", "1:30:00", ".inf", "-.inf", ".nan", "nan", "1e309", "0x10",
    "0o17", "017", "1_000", "+5", "-1", "0", "1", "2.5", "1e-3", "1e400", "9" * 400, "[1, 2]", "[1,2", "{a: b}",
    "{a: b", "a: b", "scan #2", "#", "2026-11-27", "2026-11-27T10:00:00Z", "[0-9]+", "^[^_]+", "a\\b", "é", "e\u0301",
    "\U0001f600", "'", '"', "'a", "*a", "&a", "&a 1", "!!python/object:x.Y {}", "!x", "%", "@", "`", "|", ">", "-",
    "- a", "? a", "a\nb", "\t", "\x7f", "\u2028", "[" * 5000, "{a: " * 3000, "x" * 100_000, "s3://", "s3:/x",
    "s3:///b/x", "s3://b//k", "gs://b/k", "~nosuchuser/x", "=", "a=b", "../..", "/", ".", "None", "adam", "sgd",
    "cosine", "fcn", "unet", "<<", "1..5", "1__0", "١٢", "1e3", "0b11",
)  # fmt: skip
values = st.one_of(st.sampled_from(ODD), st.text(max_size=20), st.integers(-3, 600).map(str), st.floats().map(str))
paths = st.one_of(
    st.sampled_from(FIELDS),
    st.sampled_from(TEXT_FIELDS),
    st.sampled_from(
        ["optimizer.kind", "schedule.kind", "model.kind", "source.kind", "", ".", "a.b", "data", "tune.space.x"]
    ),
    st.text(max_size=12),
)
overrides = st.lists(st.tuples(paths, values).map("=".join) | values, max_size=4)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(ODD[:60]) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """Sections with some right and some odd values."""
    tree: dict[str, Any] = {}
    for path in draw(st.lists(st.sampled_from(FIELDS), max_size=5)):
        section, *rest = path.split(".")
        node = tree.setdefault(section, {}) if rest else tree
        if isinstance(node, dict):
            node[rest[0] if rest else section] = draw(plain)
    return tree


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """The bytes of a recipe file: YAML, damaged YAML, or anything."""
    text = yaml.safe_dump(draw(trees()), allow_unicode=True)
    kind = draw(st.sampled_from(["whole", "whole", "twice", "cut", "bytes", "aliases"]))
    if kind == "twice":
        return (text + draw(st.sampled_from(["", "train:\n  epochs: 5\n", text]))).encode()
    if kind == "cut":
        cut = draw(st.integers(0, len(text)))
        return (text[:cut] + draw(st.text(max_size=3)) + text[cut:]).encode("utf-8", "surrogatepass")
    if kind == "bytes":
        return draw(st.binary(max_size=60))
    if kind == "aliases":
        levels = draw(st.integers(1, 30))
        lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, levels)]
        return "\n".join(lines).encode()
    return text.encode()


def check(box_raw: Path, content: bytes, texts: list[str]) -> None:
    file = box_raw / "recipe.yaml"
    file.write_bytes(content)
    keys = [text.partition("=")[0] for text in texts]
    read: list[Recipe] = []
    ends_well(lambda: read.append(load_recipe(file, texts)), *FIELDS, *SECTIONS, str(file), *filter(None, keys), *texts)
    for recipe in read:
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        again = box_raw / "again.yaml"
        again.write_text(recipe.to_yaml())
        assert load_recipe(again) == recipe, "what is written down is read as it was"
        assert all(math.isfinite(value) for value in _numbers(recipe.to_dict()))
        said = dict(text.split("=", 1) for text in texts)
        for field in said.keys() & set(TEXT_FIELDS):
            value = flatten(recipe.to_dict()).get(field)
            if said[field] not in ("", "null", "~"):
                assert value == said[field] or said[field].startswith("~"), f"{field} is not what was typed"


SECTIONS = sorted(Recipe().to_dict())


def _numbers(tree: object) -> list[float]:
    if isinstance(tree, Mapping):
        return [number for value in tree.values() for number in _numbers(value)]
    if isinstance(tree, list):
        return [number for value in tree for number in _numbers(value)]
    return [float(tree)] if isinstance(tree, float) else []


def run_case(content: bytes, texts: list[str]) -> None:
    with sandbox() as box:
        check(box.raw, content, texts)


@cases(70, FEW)
@given(content=files(), texts=overrides)
def test_any_recipe_is_read_to_the_letter_or_refused_by_name(content: bytes, texts: list[str]) -> None:
    run_case(content, texts)


@pytest.mark.slow
@cases(70, MANY)
@given(content=files(), texts=overrides)
def test_ten_times_as_many_recipes(content: bytes, texts: list[str]) -> None:
    run_case(content, texts)


def read_field(field: str, text: str, into: list[Recipe]) -> None:
    into.append(override(Recipe(), [f"{field}={text}"]))


@pytest.mark.parametrize("text", ODD)
def test_a_text_field_takes_odd_text_to_the_letter_or_names_itself(text: str) -> None:
    for field in TEXT_FIELDS:
        read: list[Recipe] = []
        ends_well(partial(read_field, field, text, read), field)
        for recipe in read:
            value = flatten(recipe.to_dict())[field]
            assert value == text or (value is None and text in ("", "null", "~")) or text.startswith("~")
