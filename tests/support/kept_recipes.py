"""Recipes of runs whose folders hold nothing else."""

from pathlib import Path

from segtrain.config import Recipe, override


def run_in(folder: Path, *fields: str) -> Recipe:
    """A run named `test` in a folder."""
    return override(Recipe(), [f"run.storage={folder}", "run.name=test", *fields])


def keep(recipe: Recipe) -> Recipe:
    """Leave the recipe in its run's folder, as a run does."""
    folder = Path(recipe.run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    return recipe
