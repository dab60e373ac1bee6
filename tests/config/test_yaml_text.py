"""YAML of recipes: decimal numbers, no key twice, and bounds that hold before anything large is built."""

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.config.fields import settled
from segtrain.config.yaml_text import Scalar, YamlError, read_yaml


def mistake(text: str | bytes) -> str:
    with pytest.raises(YamlError) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train: {epochs: 5}\nrun: {}\n\ntrain: {global_batch_size: 4}\n", "train stands twice (lines 1 and 4)"),
        ("train:\n  epochs: 5\n  seed: 1\n  epochs: 6\n", "train.epochs stands twice (lines 2 and 4)"),
        ("tune: {space: {model.depth: {choice: [{a: 1, a: 2}]}}}", "model.depth.choice.a stands twice (line 1)"),
        ("a: 1\n'a': 2\n", "a stands twice (lines 1 and 2)"),
        (
            "source:\n  group_regex: [0-9]+\n",
            "(line 2); a text that begins with one of [ ] { } & * ! |",
        ),
    ],
)
def test_a_key_that_stands_twice_is_named_with_its_lines(text: str, told: str) -> None:
    assert told in mistake(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 200_000, "nested more than 32 deep"),
        ("{a: " * 60_000, "nested more than 32 deep"),
        ("a: &a [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1 or ''}]\n" for n in range(1, 60)), "nested more than 32 deep"),
        ("&a [*a]", "*a stands for nothing that ended before it (line 1)"),
        ("[*b]", "*b stands for nothing"),
        ("x" * 300_000, "more than 262144 bytes"),
        ("[" + "1," * 100_000 + "]", "more than 20000 values"),
        (
            "a: &a ["
            + "lol," * 9
            + "]\n"
            + "".join(
                f"{c}: &{c} [{'*' + chr(ord(c) - 1) + ','}{'*' + chr(ord(c) - 1)}]\n"
                for c in "bcdefghijklmnopqrstuvwxyz"
            ),
            "more than 20000 values, aliases written out",
        ),
        ("a: 1\n---\nb: 2\n", "a second document begins (line 2)"),
        ("!!python/object:os.system x", "the tag !!python/object:os.system is not for recipes (line 1)"),
        ("!!binary aGk=", "the tag !!binary is not for recipes"),
        ("{[1]: 2}", "a key is a list or a mapping (line 1)"),
        ("a: b: c", "mapping values are not allowed here (line 1)"),
        ("<<: 3", "<< takes mappings"),
        (b"\xff\xfe", "not UTF-8"),
        ("a\0b", "special characters are not allowed"),
    ],
)
def test_what_is_too_much_or_no_recipe_is_refused_in_a_sentence(text: str | bytes, told: str) -> None:
    assert told in mistake(text)


@pytest.mark.parametrize(
    "text", ["[" * 20_000, "a: &a [" + "lol," * 999 + "]\n" + "b: [" + "*a, " * 1_000 + "]", "x" * 10**7]
)
def test_little_memory_is_taken_to_refuse(text: str) -> None:
    tracemalloc.start()
    try:
        mistake(text)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("+5", 5),
        ("3e-4", 3e-4),
        ("1.", 1.0),
        (".5", 0.5),
        ("1.5E+3", 1500.0),
        ("true", True),
        ("off", "off"),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("010", "010"),
        ("0x1F", "0x1F"),
        ("0b1", "0b1"),
        ("1_000", "1_000"),
        (".inf", ".inf"),
        (".NaN", ".NaN"),
        ("٣", "٣"),
        ("2026-11-27", "2026-11-27"),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("!!int '5'", 5),
        ("1" * 5000, "1" * 5000),
    ],
)
def test_numbers_are_decimal_and_the_rest_is_text(text: str, value: Any) -> None:
    found = settled(read_yaml(text), Any)
    assert found == value
    assert type(found) is type(value)


def test_aliases_and_merged_mappings_are_written_out() -> None:
    node = read_yaml("base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo: {<<: [{x: 5}, *b], z: *b}\n")
    assert settled(node, Any) == {
        "base": {"x": 1, "y": 2},
        "one": {"x": 1, "y": 3},
        "two": {"x": 5, "y": 2, "z": {"x": 1, "y": 2}},
    }


@settings(max_examples=50)
@given(st.text(max_size=200) | st.text("[]{}:,&*a- \n'\"#!|>?%@~<", max_size=60))
def test_any_text_is_a_tree_or_a_sentence(text: str) -> None:
    try:
        assert isinstance(read_yaml(text), Scalar | list | dict)
    except YamlError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both ends are right
