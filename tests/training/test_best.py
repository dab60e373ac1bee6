"""Pictures of what a run predicts: the right ones, upright, from the probabilities as computed."""

import io
import json
from types import SimpleNamespace

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from segtrain.config import Recipe, UNetConfig, override
from segtrain.dataset.shards import Row, pack_mask
from segtrain.runs.status import World
from segtrain.training.best import PanelArtist

HEIGHT, WIDTH = 12, 18


def row_of(name: str, image: Image.Image, mask: np.ndarray | None, orientation: int = 1) -> Row:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    upright = image.size if orientation < 5 else image.size[::-1]
    packed = None if mask is None else pack_mask(mask)
    return Row(
        id=name,
        group="g",
        height=upright[1],
        width=upright[0],
        orientation=orientation,
        foreground=0.0,
        image=buffer.getvalue(),
        image_crc32c=google_crc32c.value(buffer.getvalue()),
        mask=packed,
        mask_crc32c=None if packed is None else google_crc32c.value(packed),
    )


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


def artist(world: World, ids: list[str], panels: int) -> PanelArtist:
    recipe = override(Recipe(), [f"evaluation.panels={panels}"])
    return PanelArtist(SimpleNamespace(recipe=recipe, world=world, validation_data=SimpleNamespace(own_ids=ids)))


def test_only_chosen_pictures_are_drawn_and_only_by_the_chief() -> None:
    ids = [f"p{number}" for number in range(9)]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:8, 3:12] = 1
    rows = [row_of(name, picture(), mask) for name in ids]
    for world, expected in ((World(workers=2), {"p0", "p4", "p8"}), (World(workers=2, rank=1), set())):
        drawing = artist(world, ids, panels=3)
        for row in rows:
            drawing(row, mask.astype(np.float32))
        assert drawing.panels.keys() == expected
        for panel in drawing.panels.values():
            assert (panel.dtype, panel.ndim, panel.shape[-1]) == (np.uint8, 3, 3)


def test_a_panel_shows_the_prediction() -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:8, 3:12] = 1
    row = row_of("p0", picture(), mask)
    drawn = []
    for probability in (mask, 1 - mask, mask):
        drawing = artist(World(), ["p0"], panels=1)
        drawing(row, probability.astype(np.float32))
        drawn.append(drawing.panels["p0"])
    assert np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[1])


def test_a_run_may_do_without_panels() -> None:
    drawing = artist(World(), ["p0"], panels=0)
    drawing(row_of("p0", picture(), np.ones((HEIGHT, WIDTH), np.uint8)), np.ones((HEIGHT, WIDTH), np.float32))
    assert drawing.panels == {}


def test_what_is_kept_says_how_to_use_the_model_best(finished) -> None:
    kept = json.loads((finished.path / "best" / "metrics.json").read_text())
    curve = dict(zip(kept["threshold_curve"]["thresholds"], kept["threshold_curve"]["dice"], strict=True))
    assert curve[0.5] == pytest.approx(kept["dice_hard_original"], abs=1e-9)
    assert max(curve.values()) == curve[kept["best_threshold"]]
    assert kept["dice_at_best_threshold"] == pytest.approx(max(curve.values()), abs=1e-9)
    assert kept["threshold_curve"]["pictures"] == len(kept["validation_ids"]) == 8
    assert kept["threshold"] == 0.5
    assert kept["input"] == {"fit": "resize", "height": 16, "width": 24, "channels": 3}
    assert UNetConfig.model_validate(kept["model"]) == finished.recipe.model
