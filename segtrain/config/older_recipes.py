"""What a field means that a run's `recipe.yaml` does not have, because it is older than the field."""

from collections.abc import Mapping
from typing import Any

MEANT = {"model.bias_before_norm": True}
"""By dotted field: how a run did it before there was a setting."""


def as_meant(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a stored recipe, with the fields that it is too old to have."""
    meant = dict(tree)
    for path, value in MEANT.items():
        name, _, field = path.partition(".")
        section = meant.get(name)
        if isinstance(section, dict) and section.get("kind", "unet") == "unet":
            meant[name] = {field: value, **section}
    return meant
