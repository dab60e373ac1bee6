"""A car in its studio as a picture: light on its faces, back-to-front polygons, its shadow and its reflection."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from segtrain.drawing.backdrop import draw_backdrop, floor_circle
from segtrain.drawing.camera import Camera
from segtrain.drawing.car import Car
from segtrain.drawing.quads import INNER, OUTER, Floats, Quads, unit
from segtrain.drawing.room import Studio

SUPERSAMPLING = 2
"""The car's edges are drawn this much finer, then averaged."""
FLOOR_SCALE = 8
"""Shadow and reflection are blurred anyway: they are drawn this much coarser."""


def render_scene(
    car: Car, studio: Studio, camera: Camera, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One picture without noise, RGB (height, width, 3), and its mask (height, width) of {0, 1}.

    The mask holds the pixels that the car covers by half or more, mirrors and antenna included, shadow and reflection
    not. `size` is (width, height).
    """
    behind = _cast_on_floor(draw_backdrop(studio, camera, size), car, studio, camera)
    # Already soft, so whole pixels are doubled: ten times faster than bilinear, and no different to the eye.
    whole = behind.resize((behind.width * 2, behind.height * 2), Image.Resampling.NEAREST)
    picture = np.array(whole.crop((0, 0, *size)))
    body, (left, top) = _paint_car(car, studio, camera, size)
    box = np.s_[top : top + body.shape[0], left : left + body.shape[1]]
    uncovered = picture[box].astype(np.uint16) * (255 - body[..., 3:]) // 255
    picture[box] = np.minimum(uncovered + body[..., :3], 255)
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[box] = body[..., 3] >= 128
    return picture, mask


def _paint_car(
    car: Car, studio: Studio, camera: Camera, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The car alone: colours already weighted by coverage, and coverage (h, w, 4); its left top corner in the picture.

    The array spans the car's bounding box, cut off at the picture's edges.
    """
    quads = car.quads
    pixels, depth = camera.project(quads.corners)
    toward = unit(camera.position - quads.corners.mean(axis=1))
    facing = (quads.normals * toward).sum(axis=1)
    left, top = np.clip(np.floor(pixels.min(axis=(0, 1))).astype(int) - 1, 0, np.array(size) - 1).tolist()
    right, bottom = np.clip(np.ceil(pixels.max(axis=(0, 1))).astype(int) + 1, (left + 1, top + 1), size).tolist()
    far_side = (quads.layer == OUTER) & (quads.side * camera.position[1] < 0)
    order = np.lexsort((-depth.mean(axis=1), np.where(far_side, INNER, quads.layer)))
    order = order[facing[order] > 0]
    colours = _light(quads, toward, facing, studio)[order]
    # Pillow fills a polygon's outline too: without the half pixel the car would be half a pixel too fat.
    outlines = (pixels[order] - (left, top)) * SUPERSAMPLING - 0.5
    # RGBX, not RGBA: `reduce` would weigh the colours of RGBA with alpha and divide by it again.
    fine = Image.new("RGBX", ((right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING))
    _fill(fine, outlines, np.column_stack([colours, np.full(len(order), 255.0)]))
    return np.asarray(fine.reduce(SUPERSAMPLING)), (left, top)


def _cast_on_floor(picture: Image.Image, car: Car, studio: Studio, camera: Camera) -> Image.Image:
    """The half-size `picture` with the car's reflection and shadow on its floor."""
    coarse = camera.scaled(1 / FLOOR_SCALE)
    size = (-(-picture.width * 2 // FLOOR_SCALE), -(-picture.height * 2 // FLOOR_SCALE))
    blur = camera.focal / 1900 / FLOOR_SCALE
    reflection, shadow = (
        cast(car, studio, coarse, size)
        .filter(ImageFilter.GaussianBlur(radius * blur))
        .resize(picture.size, Image.Resampling.BILINEAR)
        for cast, radius in ((_reflection, 7), (_shadow, 14))
    )
    mirrored = Image.composite(reflection.convert("RGB"), picture, reflection.getchannel("A"))
    return Image.composite(mirrored, Image.new("RGB", picture.size), shadow)


def _reflection(car: Car, studio: Studio, camera: Camera, size: tuple[int, int]) -> Image.Image:
    """The car turned upside down under the floor, fading with height: RGBA."""
    corners, normals = car.quads.corners, car.quads.normals
    pixels, depth = camera.project(corners * (1, 1, -1))
    below = camera.position * (1, 1, -1)  # from there the car looks as its reflection does from above
    seen = ((below - corners.mean(axis=1)) * normals).sum(axis=1) > 0
    order = np.argsort(-depth.mean(axis=1), kind="stable")
    order = order[seen[order]]
    fade = np.clip(1.05 - corners[..., 2].mean(axis=1) / (0.8 * car.body.height), 0, 1)
    image = Image.new("RGBA", size)
    _fill(image, pixels[order], np.column_stack([car.quads.colours * 0.75, 255 * studio.gloss * fade])[order])
    return image


def _shadow(car: Car, studio: Studio, camera: Camera, size: tuple[int, int]) -> Image.Image:
    """How much light is left: the shadow that the main light casts, and a darker one right under the car."""
    corners = car.quads.corners[car.quads.normals @ studio.sun > 0]
    cast = corners - corners[..., 2:] * (studio.sun / studio.sun[2])
    image = Image.new("L", size, 255)
    _fill(image, camera.project(cast)[0], np.full((len(cast), 1), 204.0))
    circle = floor_circle(1.0, 48)
    foot = np.sign(circle) * np.abs(circle) ** 0.4 * (car.body.length * 0.48, car.body.width * 0.46, 0.0)
    _fill(image, camera.project(foot)[0][None], np.array([[110.0]]))
    return image


def _fill(image: Image.Image, outlines: Floats, colours: Floats) -> None:
    """Fill outlines (N, corners, 2) in the order given with colours (N, channels)."""
    draw = ImageDraw.Draw(image)
    inks = np.clip(colours, 0, 255).astype(int).tolist()
    for outline, ink in zip(outlines.reshape(len(outlines), 2 * outlines.shape[1]).tolist(), inks, strict=True):
        draw.polygon(outline, fill=tuple(ink))


def _light(quads: Quads, toward: Floats, facing: Floats, studio: Studio) -> Floats:
    """Colours (N, 3) of faces seen from direction `toward` (N, 3): diffuse light plus the mirrored surroundings."""
    normals, height = quads.normals, quads.corners[..., 2].mean(axis=1)
    light = 0.34 + 0.13 * (1 + normals[:, 2]) + 0.50 * studio.light * np.maximum(normals @ studio.sun, 0)
    light *= 0.72 + 0.28 * np.clip(height / 0.6, 0, 1)
    # Schlick's approximation of Fresnel's law with a weaker rim: polished paint mirrors more at a glancing angle.
    mirror = quads.gloss + np.minimum(quads.gloss * 4, 1) * 0.45 * (1 - np.clip(facing, 0, 1)) ** 4
    around = _surroundings(2 * facing[:, None] * normals - toward, studio)
    return quads.colours * (light * (1 - 0.5 * mirror))[:, None] + around * mirror[:, None]


def _surroundings(direction: Floats, studio: Studio) -> Floats:
    """Colours mirrored in directions (N, 3): a floor that darkens to the horizon, walls, lamps on the ceiling."""
    up = direction[:, 2:]
    azimuth = np.arctan2(direction[:, 1:2], direction[:, :1])
    floor = studio.floor * (0.45 + 0.45 * np.clip(-up, 0, 1) ** 0.5)
    wall = studio.wall * (0.62 + 0.16 * np.sin(5 * azimuth + studio.radius))
    lamps = 165 + 80 * np.sin(3 * azimuth + 2 * studio.radius)
    above = wall + (lamps - wall) * np.clip((up - 0.2) / 0.6, 0, 1)
    return floor + (above - floor) * np.clip(up / 0.06 + 0.5, 0, 1)
