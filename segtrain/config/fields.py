"""Which type each field of a recipe has, and so whether what was typed for it is a text or a value."""

from collections.abc import Sequence
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from segtrain.config.recipe import Recipe
from segtrain.config.section import Section
from segtrain.config.sweep_settings import Axis
from segtrain.config.yaml_text import NULLS, Node, Scalar, YamlError, plain_value, read_yaml
from segtrain.errors import UserError, shown
from segtrain.locations import without_credentials


def settled(node: Node, annotation: Any) -> Any:
    """A tree with every scalar as a field of this type takes it: a text to the letter, or what YAML understands."""
    if isinstance(node, Scalar):
        if not _is_text(annotation):
            return node.value
        return None if node.plain and node.text in NULLS and NoneType in _members(annotation) else node.text
    members = _members(annotation)
    if isinstance(node, list):
        types = next((get_args(member) for member in members if get_origin(member) is tuple), (Any,))
        return [settled(one, types[0]) for one in node]
    if any(get_args(member)[1:] == (Axis,) for member in members):
        return {name: _settled_axis(name, axis) for name, axis in node.items()}
    sections = _sections(annotation)
    return {name: settled(part, _field(sections, name)) for name, part in node.items()}


def typed(field: str, text: str) -> Any:
    """The value of `field=text`: to the letter for a text (nothing or `null` where it may be unset), else YAML.

    Raises `UserError` for a text that had to be YAML and is none.
    """
    annotation = _type_of(field)
    if _is_text(annotation):
        return None if text in ("", "null") and NoneType in _members(annotation) else text
    try:
        node = read_yaml(text)
    except YamlError as error:
        if annotation is Any:
            return text  # of a field that there is not, as will be said
        raise UserError(f"{field}: the value '{shown(without_credentials(text))}' is not YAML: {error}") from None
    if isinstance(node, Scalar) and node.plain:
        return plain_value(text.strip())  # with what YAML takes for a comment
    return settled(node, annotation)


def _settled_axis(name: str, axis: Node) -> Any:
    """An axis, its values and conditions as the fields that they are for take them."""
    if not isinstance(axis, dict):
        return settled(axis, Any)
    types = [_type_of(field.strip()) for field in name.split(",")]
    found: dict[str, Any] = {}
    for part, node in axis.items():
        if part in ("choice", "grid") and isinstance(node, list):
            found[part] = [_settled_together(one, types) for one in node]
        elif part == "when" and isinstance(node, dict):
            found[part] = {field: _settled_condition(one, _type_of(field)) for field, one in node.items()}
        else:
            found[part] = settled(node, Any)
    return found


def _settled_together(node: Node, types: list[Any]) -> Any:
    """A value of an axis: of one field, or a list of one value for each of several."""
    if len(types) > 1 and isinstance(node, list) and len(node) == len(types):
        return [settled(one, annotation) for one, annotation in zip(node, types, strict=True)]
    return settled(node, types[0])


def _settled_condition(node: Node, annotation: Any) -> Any:
    return [settled(one, annotation) for one in node] if isinstance(node, list) else settled(node, annotation)


def _type_of(field: str) -> Any:
    """The annotation of a dotted field, in any kind of its section; Any where there is none."""
    annotation: Any = Recipe
    for name in field.split("."):
        annotation = _field(_sections(annotation), name)
    return annotation


def _field(sections: Sequence[type[Section]], name: str) -> Any:
    """The annotation of a field in the first of some kinds that has it: what is a text in one is so in all."""
    return next((section.model_fields[name].annotation for section in sections if name in section.model_fields), Any)


def _sections(annotation: Any) -> list[type[Section]]:
    return [member for member in _members(annotation) if isinstance(member, type) and issubclass(member, Section)]


def _is_text(annotation: Any) -> bool:
    return any(
        member is str or (get_origin(member) is Literal and isinstance(get_args(member)[0], str))
        for member in _members(annotation)
    )


def _members(annotation: Any) -> list[Any]:
    """The types that a value may have, without what pydantic is told beside them."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (tuple, dict, Literal) or not get_args(annotation):
        return [annotation]
    return [found for member in get_args(annotation) for found in _members(member)]
