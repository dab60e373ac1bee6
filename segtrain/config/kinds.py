"""Sections that have a kind: which of their fields were set, and what becomes of these under another kind.

Before something is changed, such a section is reduced to its kind and the fields that a recipe, an override or an axis
has set. So a field that was set stays under each kind that has it, and a default of one kind never becomes a setting of
another.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from segtrain.config.model_settings import Model
from segtrain.config.optimizer_settings import Optimizer, Schedule
from segtrain.config.section import Section
from segtrain.config.source_settings import Source
from segtrain.errors import UserError


def _kinds(union: Any) -> dict[str, type[Section]]:
    """Kind -> section of a union as in `settings`, whose members are annotated with their tags."""
    members: list[type[Section]] = [get_args(member)[0] for member in get_args(get_args(union)[0])]
    return {member.model_fields["kind"].default: member for member in members}


KINDS = {
    "source": _kinds(Source),
    "model": _kinds(Model),
    "optimizer": _kinds(Optimizer),
    "schedule": _kinds(Schedule),
}
"""Section of a recipe -> its kinds."""


def put(tree: dict[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Put dotted field -> value into a tree, as one change: the order of `values` does not matter.

    Whole sections come first, then kinds, then fields. Returns a sentence for each earlier setting that is dropped.
    Raises `UserError` where a field should lie in what is a value.
    """
    dropped: list[str] = []
    for field in sorted(values, key=lambda field: (field.count("."), not field.endswith(".kind"))):
        section, _, rest = field.partition(".")
        before = tree.get(section)
        if section in KINDS and isinstance(before, dict):
            if not rest:
                dropped += _dropped_whole(section, before, values[field])
            elif rest == "kind":
                dropped += _dropped_by_kind(section, before, values[field])
                continue
        _assign(tree, field.split("."), values[field])
    return dropped


def without_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A full tree, as recorded recipes are, without the fields of `KINDS` that have their kind's default."""
    sparse = dict(tree)
    for section, kinds in KINDS.items():
        fields = tree.get(section)
        if isinstance(fields, Mapping) and fields.get("kind") in kinds:
            defaults = kinds[fields["kind"]]().model_dump(mode="json")
            sparse[section] = {
                name: value
                for name, value in fields.items()
                if name == "kind" or name not in defaults or value != defaults[name]
            }
    return sparse


def _dropped_by_kind(section: str, fields: dict[str, Any], kind: Any) -> list[str]:
    """Give a section another kind, without the fields that it does not have."""
    model = KINDS[section].get(kind) if isinstance(kind, str) else None
    lost = [] if model is None else [name for name in fields if name not in model.model_fields]
    fields["kind"] = kind
    return [f"{section}.{name}={fields.pop(name)} is dropped, as {section}.kind={kind} has none" for name in lost]


def _dropped_whole(section: str, fields: Mapping[str, Any], value: Any) -> list[str]:
    kept = value if isinstance(value, Mapping) else {}
    lost = [name for name in fields if name != "kind" and name not in kept]
    return [f"{section}.{name}={fields[name]} is dropped, as another {section} was given whole" for name in lost]


def _assign(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    *parents, last = keys
    node = tree
    for depth, key in enumerate(parents):
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise UserError(f"{'.'.join(keys)}: {'.'.join(keys[: depth + 1])} is a value, not a section")
        node = child
    node[last] = dict(value) if isinstance(value, Mapping) else value
