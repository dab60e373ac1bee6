"""Write `docs/settings.md` from the types, defaults and docstrings of `segtrain/config/`: `make docs`."""

from pathlib import Path
from typing import Any

import yaml

from segtrain.config import Recipe

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings

Every setting of a recipe, with its default. This page is made from `segtrain/config/` by `make docs`; do not edit it.

A recipe file holds only what differs from the defaults. `section.name=value` on the command line changes one setting:

```sh
python jobs/train.py jobs/recipes/quickstart.yaml data.root=data/mine train.epochs=20 optimizer.kind=adamw
```

Sections with a `kind` have other settings for each kind."""
UNITS = ((1024**3, "GiB"), (1024**2, "MiB"))


def page() -> str:
    """The whole page as Markdown, with a table for each section and kind."""
    schema = Recipe.model_json_schema()
    models = schema["$defs"]
    sections = {name: _models_of(field, models) for name, field in schema["properties"].items()}
    plain = {name: schema["properties"][name] for name, found in sections.items() if not found}
    blocks = [HEAD, _table(plain)]
    for name, found in sections.items():
        if len(found) == 1:
            blocks += [f"## {name}", found[0]["description"], _table(found[0]["properties"], f"{name}.", models)]
        elif found:
            default = schema["properties"][name]["default"]["kind"]
            blocks += [f"## {name}", f"`{name}.kind` is `{default}` unless you choose another."]
            for model in found:
                kind = model["properties"]["kind"]["const"]
                fields = {field: facts for field, facts in model["properties"].items() if field != "kind"}
                text = [model["description"]] if "description" in model else []
                blocks += [f"### {name}.kind={kind}", *text, _table(fields, f"{name}.", models)]
    axis = models["Axis"]
    blocks += ["## An axis of tune.space", axis["description"], _table(axis["properties"])]
    return "\n\n".join(blocks) + "\n"


def _models_of(field: dict[str, Any], models: dict[str, Any]) -> list[dict[str, Any]]:
    """The sections that a field of the recipe may hold: one, one for each kind, or none."""
    references = [option["$ref"] for option in [field, *field.get("oneOf", [])] if "$ref" in option]
    return [models[reference.rpartition("/")[2]] for reference in references]


def _table(fields: dict[str, Any], prefix: str = "", models: dict[str, Any] | None = None) -> str:
    rows = ["| setting | value | default | what it does |", "| --- | --- | --- | --- |"]
    for name, facts in fields.items():
        inner = _models_of(facts, models or {})
        if inner:
            rows += _table(inner[0]["properties"], f"{prefix}{name}.").splitlines()[2:]
        else:
            text = facts.get("description", "").replace("\n", " ").replace("|", "\\|")
            rows.append(f"| `{prefix}{name}` | {_value(facts)} | {_default(facts)} | {text} |")
    return "\n".join(rows)


def _value(facts: dict[str, Any]) -> str:
    """What may be given, in words."""
    if "anyOf" in facts:
        return " or ".join(_value(option) for option in facts["anyOf"] if option.get("type") != "null")
    if "enum" in facts:
        return ", ".join(f"`{option}`" for option in facts["enum"])
    if facts["type"] == "array":
        items = facts.get("prefixItems")
        return f"{len(items)} values" if items else f"list of {_value(facts['items'])}" if facts["items"] else "list"
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true`, `false`"}
    return words.get(facts["type"], "mapping") + _bounds(facts)


def _bounds(facts: dict[str, Any]) -> str:
    words = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    # A bound of 2**29 and more keeps numbers within what a computer counts; it tells a reader nothing.
    found = [f"{sign} {facts[name]:g}" for name, sign in words.items() if name in facts and facts[name] < 2**28]
    return f" {', '.join(found)}" if found else ""


def _default(facts: dict[str, Any]) -> str:
    if facts.get("default") is None:
        return ""
    default = facts["default"]
    for size, unit in UNITS:
        if facts.get("title", "").endswith("Bytes") and default and default % size == 0:
            return f"`{default}` ({default // size} {unit})"
    return f"`{yaml.safe_dump(default, default_flow_style=True).splitlines()[0]}`"


if __name__ == "__main__":
    PAGE.write_text(page())
