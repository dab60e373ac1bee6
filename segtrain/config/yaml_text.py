"""YAML as recipes have it: mappings, lists, text and decimal numbers. Its size is bounded before anything is built."""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    Event,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)

from segtrain.locations import without_credentials

MOST_BYTES = 2**18
MOST_DEPTH = 32
MOST_VALUES = 20_000
"""Keys, texts, numbers, lists and mappings, with what aliases stand for counted each time."""

NULLS = ("", "~", "null", "Null", "NULL")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"(^|:|-)\s+[\[\]{}&*!|>%@`]")
_TAG = "tag:yaml.org,2002:"
_OF_TEXT = ("!", f"{_TAG}str")
_OF_VALUES = tuple(f"{_TAG}{name}" for name in ("int", "float", "bool", "null"))
_OF_COLLECTIONS = (None, "!", f"{_TAG}map", f"{_TAG}seq")


class YamlError(ValueError):
    """What is wrong with a text that should be YAML, in a sentence without the file's name."""


@dataclass(frozen=True)
class Scalar:
    """A value of which only its field tells whether it is a text or a number."""

    text: str
    """As it was typed, without quotes."""
    plain: bool
    """Not quoted."""

    @property
    def value(self) -> Any:
        """As YAML understands it: a number, a truth value or nothing where it looks like one, else the text."""
        return plain_value(self.text) if self.plain else self.text


Node = Scalar | list[Any] | dict[str, Any]
"""Lists and mappings hold nodes again."""


def plain_value(text: str) -> Any:
    """What an unquoted text is. Numbers are decimal, so `1:30`, `0x1F`, `010`, `1_000` and `.inf` are texts."""
    if text in NULLS:
        return None
    if text in ("true", "True", "false", "False"):
        return text in ("true", "True")
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) and not text.lstrip("+-").isdigit() else text


def read_yaml(data: str | bytes) -> Node:
    """The one document in a text. Raises `YamlError` for what is no YAML, too large, or has a key twice."""
    if len(data) > MOST_BYTES:
        raise YamlError(f"it has more than {MOST_BYTES} bytes, which is no recipe")
    try:
        text = data.decode() if isinstance(data, bytes) else data
        return _Reader(yaml.parse(text, yaml.SafeLoader)).document()
    except UnicodeDecodeError:
        raise YamlError("it is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        raise _marked(error, text) from None
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split())) from None


class _Reader:
    """Builds a tree from the parser's events, which come one by one, and stops at the first that is too much."""

    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._values = 0
        self._anchors: dict[str, tuple[Node, int]] = {}

    def document(self) -> Node:
        found: Node | None = None
        for event in self._events:
            if isinstance(event, NodeEvent):
                found = self._node(event, "", 0)
            elif isinstance(event, DocumentStartEvent) and found is not None:
                raise YamlError(f"a second document begins (line {_line(event)})")
        return Scalar("", plain=True) if found is None else found

    def _node(self, event: Any, path: str, depth: int) -> Node:
        self._count(1, event)
        if depth > MOST_DEPTH:
            raise YamlError(f"it is nested more than {MOST_DEPTH} deep (line {_line(event)})")
        if isinstance(event, AliasEvent):
            return self._alias(event, depth)
        before = self._values
        if isinstance(event, ScalarEvent):
            node: Node = _scalar(event)
        elif event.tag not in _OF_COLLECTIONS:
            raise _strange_tag(event)
        elif isinstance(event, SequenceStartEvent):
            node = [self._node(one, path, depth + 1) for one in self._until_end()]
        else:
            node = self._mapping(path, depth)
        if event.anchor:
            self._anchors[event.anchor] = node, self._values - before + 1
        return node

    def _mapping(self, path: str, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        lines: dict[str, int] = {}
        merged: dict[str, Node] = {}
        for event in self._until_end():
            key = self._node(event, path, depth + 1)
            if not isinstance(key, Scalar):
                raise YamlError(f"a key is a list or a mapping (line {_line(event)})")
            name = f"{path}.{key.text}" if path else key.text
            if key.text in lines:
                first, second = lines[key.text], _line(event)
                where = f"line {first}" if first == second else f"lines {first} and {second}"
                raise YamlError(f"{name} stands twice ({where})")
            lines[key.text] = _line(event)
            value = self._node(next(self._events), name, depth + 1)
            if key.plain and key.text == "<<":
                for one in value if isinstance(value, list) else [value]:
                    if not isinstance(one, dict):
                        raise YamlError(f"<< takes mappings (line {_line(event)})")
                    merged = one | merged
            else:
                found[key.text] = value
        return merged | found

    def _alias(self, event: AliasEvent, depth: int) -> Node:
        if event.anchor not in self._anchors:
            raise YamlError(f"*{event.anchor} stands for nothing that ended before it (line {_line(event)})")
        node, values = self._anchors[event.anchor]
        self._count(values, event)
        if depth + _depth(node) > MOST_DEPTH:
            raise YamlError(f"it is nested more than {MOST_DEPTH} deep (line {_line(event)})")
        return copy.deepcopy(node)

    def _until_end(self) -> Iterator[Event]:
        """The first event of each entry of the list or mapping that has begun."""
        return takewhile(lambda event: not isinstance(event, CollectionEndEvent), self._events)

    def _count(self, values: int, event: Event) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            raise YamlError(f"it holds more than {MOST_VALUES} values, aliases written out (line {_line(event)})")


def _marked(error: yaml.MarkedYAMLError, text: str) -> YamlError:
    """What the parser says, its line, and that a text which begins like something else has to be quoted."""
    told = without_credentials(" ".join(filter(None, (error.context, error.problem))))
    if error.problem_mark is None:
        return YamlError(told)
    marks = [mark for mark in (error.context_mark, error.problem_mark) if mark is not None]
    lines = text.splitlines()
    odd = any(_SPECIAL.search(line) for mark in marks for line in lines[mark.line : mark.line + 1])
    hint = "; a text that begins with one of [ ] { } & * ! | > % @ ` has to be in quotes" if odd else ""
    return YamlError(f"{told} (line {error.problem_mark.line + 1}){hint}")


def _scalar(event: ScalarEvent) -> Scalar:
    if event.tag in _OF_VALUES:
        return Scalar(event.value, plain=True)
    if event.tag is not None and event.tag not in _OF_TEXT:
        raise _strange_tag(event)
    return Scalar(event.value, plain=event.tag is None and event.style is None)


def _strange_tag(event: Any) -> YamlError:
    return YamlError(f"the tag {str(event.tag).replace(_TAG, '!!')} is not for recipes (line {_line(event)})")


def _depth(node: Node) -> int:
    if isinstance(node, Scalar):
        return 0
    parts = node.values() if isinstance(node, dict) else node
    return 1 + max(map(_depth, parts), default=0)


def _line(event: Event) -> int:
    return 0 if event.start_mark is None else int(event.start_mark.line) + 1
