"""Recipes from YAML files, and the `key.path=value` overrides of the command line."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from segtrain.config.fields import settled, typed
from segtrain.config.kinds import put
from segtrain.config.recipe import Recipe
from segtrain.config.yaml_text import MOST_BYTES, YamlError, read_yaml
from segtrain.errors import UserError, shown
from segtrain.locations import is_remote, local_path

logger = logging.getLogger(__name__)


def load_recipe(path: str | Path | None, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file (or start from the defaults), apply `key.path=value` overrides, check the result.

    A run without a name is called after the file. Raises `UserError` for a missing or malformed file, an unknown
    key (with the nearest right one), and a value that does not fit.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        tree = _read_file(str(path))
        run = tree.setdefault("run", {})
        if isinstance(run, dict):
            run.setdefault("name", PurePosixPath(path).stem)
    return override(Recipe.from_dict(tree), overrides)


def recorded(data: str | bytes) -> Recipe:
    """The recipe that `Recipe.to_yaml` has written. Raises `UserError`, without the file's name, for another text.

    A user and password in the address of a server, which older versions of segtrain took, are left out.
    """
    try:
        tree = _tree(data)
    except YamlError as error:
        raise UserError(str(error)) from None
    storage = tree.get("storage")
    if isinstance(storage, dict) and isinstance(storage.get("endpoint_url"), str):
        storage["endpoint_url"] = re.sub(r"://.*@", "://", storage["endpoint_url"])
    return Recipe.from_dict(tree)


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """The recipe with `key.path=value` texts put in, as one change: of two for one key, the last counts.

    A field that is a text takes what was typed, to the letter; other values are read as YAML. What was set and does
    not go with a new kind is dropped, and logged.
    """
    values: dict[str, Any] = {}
    to_say: list[str] = []
    for text in overrides:
        field, separator, value = text.partition("=")
        if not separator or not field:
            raise UserError(f"'{shown(text)}' is not key=value; write for example optimizer.learning_rate=3e-4")
        values[field] = typed(field, value)
        if len(value) > 1 and value == values[field] and value[0] == value[-1] and value[0] in "'\"":
            to_say.append(f"{field}: the quotes are part of the text; leave them out unless that is meant")
    tree = recipe.as_set()
    to_say += put(tree, values)
    changed = Recipe.checked(tree)
    for line in to_say:
        logger.warning("warning: %s", line)
    return changed


def _read_file(path: str) -> dict[str, Any]:
    if is_remote(path):
        raise UserError(f"{path}: recipes are read from this machine; copy it here and give its local path")
    file_path = local_path(path)
    # A shell's `<(...)` is a pipe too, with a writer, but no name in the file system behind its path.
    if file_path.is_fifo() and file_path.resolve().exists():
        raise UserError(f"{path} is no file but a pipe; give a recipe file")
    try:
        with file_path.open("rb") as file:
            return _tree(file.read(MOST_BYTES + 1))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such recipe; see jobs/recipes/") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; give a recipe file") from None
    except YamlError as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from None


def _tree(data: str | bytes) -> dict[str, Any]:
    node = read_yaml(data)
    if not isinstance(node, dict):
        if getattr(node, "value", "") is None:
            return {}
        raise YamlError("a recipe is a mapping of sections, such as `model:` with `filters: 16` below it")
    tree: dict[str, Any] = settled(node, Recipe)
    return tree
