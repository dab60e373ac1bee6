"""Synthetic cars: Kaggle's layout, the same bytes for the same seed, hard for pixels alone."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from segtrain.config import SyntheticSource
from segtrain.errors import UserError
from segtrain.prepare.sources.synthetic import car_id, draw_cars
from segtrain.rle import decode

SMALL = SyntheticSource(cars=2, views=2, height=64, width=96, seed=3)
STUDY = SyntheticSource(cars=9, views=4, height=160, width=240, seed=0)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    draw_cars(STUDY, root)
    return root


def _contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _pictures(root: Path, car: int) -> tuple[np.ndarray, np.ndarray]:
    """All views of a car of the study, (views, H, W, 3) in 0..1, and its masks (views, H, W)."""
    paths = sorted((root / "train").glob(f"{car_id(STUDY.seed, car)}_*.jpg"))
    images = np.stack([np.asarray(Image.open(path), np.float64) / 255 for path in paths])
    masks = np.stack([np.asarray(Image.open(root / "train_masks" / f"{path.stem}_mask.gif")) for path in paths])
    return images, masks


def test_the_files_are_named_and_encoded_as_kaggles(tmp_path: Path) -> None:
    draw_cars(SMALL, tmp_path)
    names = sorted(path.name for path in (tmp_path / "train").iterdir())
    assert len(names) == 4
    assert all(re.fullmatch(r"[0-9a-f]{12}_0[12]\.jpg", name) for name in names)
    for name in names:
        with Image.open(tmp_path / "train" / name) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 64))
        with Image.open(tmp_path / "train_masks" / name.replace(".jpg", "_mask.gif")) as mask:
            assert isinstance(mask, GifImageFile)
            assert (mask.mode, mask.size, mask.n_frames) == ("P", (96, 64), 1)
            assert set(np.unique(np.asarray(mask))) == {0, 1}
    assert len(list((tmp_path / "train_masks").iterdir())) == 4


def test_the_csv_holds_the_same_masks_as_the_gifs(tmp_path: Path) -> None:
    draw_cars(SMALL, tmp_path)
    text = (tmp_path / "train_masks.csv").read_bytes().decode()
    assert text.startswith("img,rle_mask\n")
    assert text.endswith("\n")
    assert "\r" not in text
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["img"] for row in rows] == sorted(path.name for path in (tmp_path / "train").iterdir())
    for row in rows:
        with Image.open(tmp_path / "train_masks" / row["img"].replace(".jpg", "_mask.gif")) as mask:
            np.testing.assert_array_equal(decode(row["rle_mask"], 64, 96), np.asarray(mask))


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(tmp_path: Path) -> None:
    draw_cars(SMALL, tmp_path / "one")
    draw_cars(SMALL, tmp_path / "two", workers=2)
    assert _contents(tmp_path / "one") == _contents(tmp_path / "two")


def test_more_cars_leave_the_first_cars_as_they_were(tmp_path: Path) -> None:
    draw_cars(SMALL, tmp_path / "two")
    draw_cars(SMALL.model_copy(update={"cars": 3}), tmp_path / "three")
    few, more = _contents(tmp_path / "two"), _contents(tmp_path / "three")
    assert all(more[name] == data for name, data in few.items() if name != "train_masks.csv")


def test_another_seed_draws_other_cars(tmp_path: Path) -> None:
    draw_cars(SMALL, tmp_path / "a")
    draw_cars(SMALL.model_copy(update={"seed": 4}), tmp_path / "b")
    a, b = _contents(tmp_path / "a"), _contents(tmp_path / "b")
    assert a.keys() & b.keys() == {"train_masks.csv"}
    assert not set(a.values()) & set(b.values())


@pytest.mark.parametrize("stranger", ["train/holiday.jpg", "train_masks/holiday_mask.gif"])
def test_a_folder_with_other_pictures_is_refused_before_anything_is_drawn(tmp_path: Path, stranger: str) -> None:
    (tmp_path / stranger).parent.mkdir()
    (tmp_path / stranger).write_bytes(b"")
    with pytest.raises(UserError, match=r"source\.path.*holiday.*empty folder"):
        draw_cars(SMALL, tmp_path)
    assert list(_contents(tmp_path)) == [stranger]


def test_a_car_fills_about_as_much_of_the_picture_as_kaggles(study: Path) -> None:
    fractions = np.concatenate([_pictures(study, car)[1].mean(axis=(1, 2)) for car in range(STUDY.cars)])
    assert 0.15 < fractions.mean() < 0.27  # Carvana: 0.211, from 0.088 to 0.410
    assert fractions.min() > 0.07
    assert fractions.max() < 0.45


def test_views_of_a_car_resemble_each_other_more_than_other_cars(study: Path) -> None:
    colours = []
    for car in range(STUDY.cars):
        images, masks = _pictures(study, car)
        colours.append([np.median(image[mask == 1], axis=0) for image, mask in zip(images, masks, strict=True)])
    centres = np.mean(colours, axis=1)
    within = np.linalg.norm(np.array(colours) - centres[:, None], axis=-1).mean()
    between = np.linalg.norm(centres[:, None] - centres[None], axis=-1).sum() / (STUDY.cars * (STUDY.cars - 1))
    assert within < between / 2


def test_colour_and_position_of_a_pixel_do_not_give_the_car_away(study: Path) -> None:
    """A logistic regression on RGB, x, y and their squares, on cars it has not seen, stays under 0.85 dice."""

    def features(images: np.ndarray) -> np.ndarray:
        y, x = np.meshgrid(np.linspace(-1, 1, STUDY.height), np.linspace(-1, 1, STUDY.width), indexing="ij")
        place = np.broadcast_to(np.stack([x, y], axis=-1), (*images.shape[:3], 2))
        plain = np.concatenate([images, place], axis=-1).reshape(-1, 5)
        return np.hstack([plain, plain**2])

    cars = [_pictures(study, car) for car in range(STUDY.cars)]
    seen = np.concatenate([features(images) for images, _ in cars[:6]])
    wanted = np.concatenate([masks.ravel() for _, masks in cars[:6]])
    chosen = np.random.default_rng(0).choice(len(seen), 30_000, replace=False)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(seen[chosen], wanted[chosen])
    probabilities = [model.predict_proba(features(images))[:, 1].reshape(masks.shape) for images, masks in cars[6:]]
    truth = np.concatenate([masks for _, masks in cars[6:]]) == 1
    best = 0.0
    for threshold in np.linspace(0.1, 0.7, 13):  # even with the threshold chosen on the test cars
        found = np.concatenate(probabilities) > threshold
        best = max(best, np.mean(2 * (found & truth).sum(axis=(1, 2)) / (found.sum((1, 2)) + truth.sum((1, 2)))))
    assert 0.3 < best < 0.85
