"""Source `synthetic`: cars drawn in Kaggle's Carvana layout, the same bytes for the same seed.

Each car is one 3-D shape in a studio of its own; its views are taken all round it, so they resemble one another while
cars differ. The mask is the car exactly, with mirrors and antenna and without its shadow and reflection.
"""

import hashlib
import signal
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from segtrain.config import SyntheticSource
from segtrain.drawing.camera import Camera, look_at
from segtrain.drawing.car import STYLES, Car, build_car
from segtrain.drawing.rendering import render_scene
from segtrain.drawing.room import build_studio
from segtrain.errors import UserError
from segtrain.rle import encode

JPEG_QUALITY = 75
"""With the noise below about 100 KB a picture at 1918x1280, as Kaggle's have."""
NOISE_LEVELS = 1.8
"""Standard deviation of the sensor's noise, of 255."""
NOISE_MARGIN = 64
"""A car's noise is drawn once, this much larger than a picture; each view cuts its own part out of it."""
FOCAL = 1900
"""Focal length in pixels at 1918x1280."""
MARGIN = 0.02
"""The car keeps this fraction of the picture clear on every side."""


def draw_cars(config: SyntheticSource, root: Path, workers: int = 1) -> None:
    """Write `root/train/*.jpg`, `root/train_masks/*_mask.gif` and, last, `root/train_masks.csv`.

    The files depend on `config` alone, not on `workers` (processes). Raises `UserError` if `root` holds other pictures.
    """
    ids = [car_id(config.seed, car) for car in range(config.cars)]
    for folder, ending in (("train", ".jpg"), ("train_masks", "_mask.gif")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        expected = {f"{name}_{view + 1:02d}{ending}" for name in ids for view in range(config.views)}
        strangers = sorted({path.name for path in (root / folder).iterdir()} - expected)
        if strangers:
            raise UserError(
                f"source.path: {root / folder} already holds other pictures ({strangers[0]}); name an empty folder"
            )
    if min(workers, config.cars) == 1:
        cars = [_draw_car(config, root, number) for number in range(config.cars)]
    else:
        cars = _draw_side_by_side(config, root, min(workers, config.cars))
    rows = sorted(f"{name},{runs}\n" for car in cars for name, runs in car)
    (root / "train_masks.csv").write_bytes("".join(["img,rle_mask\n", *rows]).encode())


def _draw_side_by_side(config: SyntheticSource, root: Path, workers: int) -> list[list[tuple[str, str]]]:
    """`_draw_car` of every car, in `workers` processes, which an error or a signal ends at once."""
    others = active_children()
    # Not forked: the caller may hold threads (Ray, TensorFlow), and a forked child can inherit their locks.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=signal.signal,  # a terminal's Ctrl-C is for the job, which ends them
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        return list(pool.map(_draw_car, repeat(config), repeat(root), range(config.cars)))
    except BaseException:
        for child in set(active_children()).difference(others):
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def car_id(seed: int, car: int) -> str:
    """Twelve hex digits that name car number `car` of a seed."""
    return hashlib.blake2b(f"segtrain synthetic {seed} {car}".encode(), digest_size=6).hexdigest()


def _draw_car(config: SyntheticSource, root: Path, number: int) -> list[tuple[str, str]]:
    """Write all views of one car; returns (picture's file name, run lengths) for each."""
    rng = np.random.default_rng([config.seed, number])
    size = (config.width, config.height)
    # Body types take turns in an order of the seed, so that few cars hold all of them and a longer set begins the same.
    turns = np.random.default_rng(config.seed).permutation(len(STYLES))
    car = build_car(rng, STYLES[turns[number % len(STYLES)]])
    studio = build_studio(rng, car.body.paint)
    noise = _noise(rng, size)
    side = rng.uniform(0.70, 0.98)  # of the picture's width that the car would take seen from its side
    distance, start = car.body.length / side + car.body.width / 2, rng.uniform(-0.2, 0.2)
    rows = []
    for view in range(config.views):
        angle = start + 2 * np.pi * view / config.views + rng.normal(0, 0.03)
        picture, mask = render_scene(car, studio, _aim(rng, size, car, distance, angle), size)
        left, top = rng.integers(0, NOISE_MARGIN + 1, 2).tolist()
        grain = noise.crop((left, top, left + size[0], top + size[1])).convert("RGB")
        stem = f"{car_id(config.seed, number)}_{view + 1:02d}"
        noisy = ImageChops.add(Image.fromarray(picture), grain, offset=-128)
        noisy.save(root / "train" / f"{stem}.jpg", quality=JPEG_QUALITY)
        _save_mask(mask, root / "train_masks" / f"{stem}_mask.gif")
        rows.append((f"{stem}.jpg", encode(mask)))
    return rows


def _aim(rng: np.random.Generator, size: tuple[int, int], car: Car, distance: float, angle: float) -> Camera:
    """A camera at head height, `distance` metres off, with the whole car in the picture, though not in its middle."""
    frame = np.array(size, np.float64)
    position = np.array([np.cos(angle) * distance, np.sin(angle) * distance, rng.uniform(1.35, 1.75)])
    focal = FOCAL * min(size[0] / 1918, size[1] / 1280)
    camera = look_at(position, np.array([0.0, 0.0, 0.45 * car.body.height]), focal)
    seen = camera.project(car.quads.corners)[0].reshape(-1, 2)
    room = frame * (1 - 2 * MARGIN)
    fit = min(1.0, float((room / np.ptp(seen, axis=0)).min()))
    slack = room - np.ptp(seen, axis=0) * fit
    corner = MARGIN * frame + slack * (0.5 + rng.uniform(-0.5, 0.5, 2) * (0.9, 0.6))
    x, y = (corner - seen.min(axis=0) * fit).tolist()
    return camera._replace(focal=camera.focal * fit, centre=(x, y))


def _noise(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Grey noise around 128."""
    shape = (size[1] + NOISE_MARGIN, size[0] + NOISE_MARGIN)
    return Image.fromarray(np.clip(rng.normal(128.5, NOISE_LEVELS, shape), 0, 255).astype(np.uint8))


def _save_mask(mask: NDArray[np.uint8], path: Path) -> None:
    """A GIF with a black and white palette whose pixels are {0, 1}."""
    image = Image.fromarray(mask)
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(path)
