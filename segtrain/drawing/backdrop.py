"""A studio as the camera sees it, without the car.

Drawn at half size and blurred a little: it lies behind the plane of focus, and drawing it so costs a quarter.
"""

from itertools import pairwise

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from segtrain.drawing.camera import NEAR_M, Camera
from segtrain.drawing.quads import Floats
from segtrain.drawing.room import Item, Studio

BEHIND_CAR_M = 2.5
"""Clutter is drawn only this far behind the car's middle: a mask has no notion of what stands in the way."""
FLOOR_CELL = 8
"""The floor's smooth light is computed once for each square of this many pixels a side."""


def draw_backdrop(studio: Studio, camera: Camera, size: tuple[int, int]) -> Image.Image:
    """An RGB picture of half `size` (width, height), rounded up; `camera` is that of the full picture."""
    half = camera.scaled(0.5)
    width, height = (size[0] + 1) // 2, (size[1] + 1) // 2
    picture = Image.new("RGB", (width, height), _rgb(studio.wall * 0.92))
    _paint_items(picture, studio.walls, half, studio, NEAR_M)
    fall = Image.linear_gradient("L").resize((1, height)).point(lambda row: 205 + row * 50 // 255)
    picture = ImageChops.multiply(picture, fall.resize(picture.size).convert("RGB"))  # the wall darkens upwards
    picture.paste(_floor(studio, half, picture.size), mask=_floor_mask(studio, half, picture.size))
    _floor_lines(picture, studio, half)
    _paint_items(picture, studio.clutter, half, studio, float(np.hypot(*camera.position[:2])) + BEHIND_CAR_M)
    return picture.filter(ImageFilter.BoxBlur(1.6 * min(size[0] / 1918, size[1] / 1280)))


def _rgb(colour: Floats) -> tuple[int, int, int]:
    red, green, blue = np.clip(colour, 0, 255).astype(int).tolist()
    return red, green, blue


def _paint_items(picture: Image.Image, items: list[Item], camera: Camera, studio: Studio, beyond: float) -> None:
    """Paint the plates deeper than `beyond` metres, far ones first, lit by how far they face the main light."""
    draw = ImageDraw.Draw(picture)
    corners = np.array([item.corners for item in items])
    pixels, depth = camera.project(corners)
    middle = corners.mean(axis=1)[:, :2]
    inward = -middle / np.linalg.norm(middle, axis=1, keepdims=True)
    lit = 0.80 + 0.22 * studio.light * (inward @ studio.sun[:2])
    order = np.argsort(-np.linalg.norm(middle - camera.position[:2], axis=1), kind="stable")
    for k in order[depth[order].min(axis=1) > beyond]:
        colour = items[k].colour * (lit[k] + (1 - lit[k]) * items[k].glow)
        draw.polygon(pixels[k].ravel().tolist(), fill=_rgb(colour))


def floor_circle(radius: float, count: int) -> Floats:
    """Points (count, 3) on the floor."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros(count)])


def _floor_mask(studio: Studio, camera: Camera, size: tuple[int, int]) -> Image.Image:
    """255 where the picture shows the floor: below the foot of the wall."""
    pixels, depth = camera.project(floor_circle(studio.radius, 192))
    foot = pixels[depth > NEAR_M]
    foot = foot[np.argsort(foot[:, 0])]
    sides = np.array([[-9.0 * size[0], 4.0 * size[1]], [9.0 * size[0], 4.0 * size[1]]])
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon(np.concatenate([sides[:1], foot, sides[1:]]).ravel().tolist(), fill=255)
    return mask


def _floor(studio: Studio, camera: Camera, size: tuple[int, int]) -> Image.Image:
    """The floor under a pool of light, paling towards the wall."""
    columns, rows = -(-size[0] // FLOOR_CELL) + 1, -(-size[1] // FLOOR_CELL) + 1
    x, y = np.meshgrid((np.arange(columns) + 0.5) * FLOOR_CELL, (np.arange(rows) + 0.5) * FLOOR_CELL)
    rays = np.stack([x - camera.centre[0], y - camera.centre[1], np.full_like(x, camera.focal)], axis=-1)
    rays = rays / camera.focal @ camera.axes
    reach = camera.position[2] / np.maximum(-rays[..., 2], 0.02)
    spot = camera.position[:2] + rays[..., :2] * reach[..., None]
    away = np.linalg.norm(spot - studio.sun[:2], axis=-1, keepdims=True)
    pool = 0.72 + 0.36 * studio.light * np.exp(-((away / 4.5) ** 2))
    haze = np.clip(away / studio.radius, 0, 1) ** 3 * 0.35
    colour = studio.floor * pool * (1 - haze) + studio.wall * 0.85 * haze
    coarse = Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))
    fine = coarse.resize((columns * FLOOR_CELL, rows * FLOOR_CELL), Image.Resampling.BILINEAR)
    return fine.crop((0, 0, *size))


def _floor_lines(picture: Image.Image, studio: Studio, camera: Camera) -> None:
    """Joints between tiles, and the turntable's edge: darker lines on the floor."""
    lines: list[tuple[Floats, float]] = []
    if studio.tiles:
        for at in np.arange(-studio.radius * 0.95, studio.radius * 0.95, studio.tiles):
            far = np.sqrt(studio.radius**2 - at**2) * 0.98
            along, aside = np.linspace(-far, far, 40), np.full(40, at)
            lines += [(np.column_stack([*way, np.zeros(40)]), 0.84) for way in ((along, aside), (aside, along))]
    if studio.disc:
        ring = np.pad(floor_circle(studio.disc, 96), ((0, 1), (0, 0)), mode="wrap")
        lines += [(ring, 0.55), (ring * 0.985, 0.80)]
    draw = ImageDraw.Draw(picture)
    for line, shade in lines:
        pixels, depth = camera.project(line)
        for (a, near), (b, next_near) in pairwise(zip(pixels.tolist(), depth.tolist(), strict=True)):
            if min(near, next_near) > NEAR_M:
                thick = max(1, round(0.012 * camera.focal / min(near, next_near)))
                draw.line([*a, *b], fill=_rgb(studio.floor * shade), width=thick)
