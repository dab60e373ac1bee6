"""Recipes from YAML files, and the `key.path=value` overrides of the command line."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from segtrain.config.recipe import Recipe
from segtrain.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `3e-4` as a string and `off` as false; people mean a number and a word, as in YAML 1.2."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own attribute
        letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_recipe(path: str | Path | None, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file (or start from the defaults), apply `key.path=value` overrides, check the result.

    A run without a name is called after the file. Raises `UserError` for a missing or malformed file, an unknown
    key (with the nearest right one), and a value that does not fit.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        tree = _read_yaml(Path(path))
        run = tree.setdefault("run", {})
        if isinstance(run, dict):
            run.setdefault("name", PurePosixPath(path).stem)
    return override(Recipe.from_dict(tree), overrides)


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """The recipe with `key.path=value` texts applied in order; values are read as YAML."""
    tree = recipe.to_dict()
    for text in overrides:
        path, separator, value = text.partition("=")
        if not separator or not path:
            raise UserError(f"'{text}' is not key=value; write for example optimizer.learning_rate=3e-4")
        try:
            assign(tree, path.split("."), yaml.load(value, _Loader))
        except yaml.YAMLError:
            raise UserError(f"{path}: the value '{value}' is not YAML; quote it") from None
    return Recipe.from_dict(tree)


def assign(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set one value in a tree of plain dicts. A section that changes its kind starts from that kind's own defaults."""
    *parents, last = keys
    node = tree
    for depth, key in enumerate(parents):
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise UserError(f"{'.'.join(keys)}: {'.'.join(keys[: depth + 1])} is a value, not a section")
        node = child
    if last == "kind" and node.get("kind") != value:
        node.clear()
    node[last] = value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such recipe; see jobs/recipes/") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, such as `model:` with `filters: 16` below it")
    return tree
