"""Shapes pasted on photographs: a small labeled data set for detection and segmentation, reproducible by seed.

Circles, squares and triangles of random size, rotation, color and opacity are drawn on random crops of scikit-image's
photographs. All classes have the same distribution of colors and areas, so neither reveals the class.
"""

import math
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from skimage import data
from torch import Tensor
from torchvision.ops import masks_to_boxes
from torchvision.transforms.functional import pil_to_tensor

CLASSES = ("background", "circle", "square", "triangle")
CORNERS = {"square": 4, "triangle": 3}

# Photographs in scikit-image's wheel. The ones for evaluation never occur in training, not even as a background.
TRAINING = (
    "astronaut",
    "coffee",
    "rocket",
    "retina",
    "immunohistochemistry",
    "hubble_deep_field",
    "brick",
    "grass",
    "gravel",
    "coins",
)
HELD_OUT = ("chelsea", "stereo_motorcycle")

CROPS = (0.4, 0.9)  # side of the crop, as a fraction of the photograph's shorter side
RADII = (0.08, 0.18)  # radius of the circle with the shape's area, as a fraction of the image's side
OPACITIES = (0.6, 1.0)
MOST = 4  # maximum number of shapes per image
VISIBLE = 0.75  # minimum visible fraction of a shape's area
TRIES = 10  # number of random places to try before skipping a shape
FINE = 4  # supersampling factor for drawing shapes


class Example(NamedTuple):
    """An image with its ground truth.

    Attributes:
        image: (3, H, W), from 0 to 1.
        target: "boxes" (M, 4), x1, y1, x2, y2 in pixels around the visible part of each shape, and "labels" (M,).
        mask: (H, W), the class of each pixel, 0 for the background.
    """

    image: Tensor
    target: dict[str, Tensor]
    mask: Tensor


def examples(count: int, size: int, seed: int, photographs: Sequence[str]) -> list[Example]:
    """Draw square images with random shapes.

    Args:
        count: number of images.
        size: side of the images in pixels.
        seed: random seed.
        photographs: names of photographs in `skimage.data`.

    Returns:
        The images with their ground truth.
    """
    random = Random(seed)
    backgrounds = [_photograph(name) for name in photographs]
    return [_example(random, _crop(random, random.choice(backgrounds), size)) for _ in range(count)]


def _photograph(name: str) -> Image.Image:
    pixels = getattr(data, name)()
    # A stereo pair is a tuple of two pictures and the disparity; use the left picture.
    return Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels).convert("RGB")


def _crop(random: Random, photograph: Image.Image, size: int) -> Image.Image:
    side = random.uniform(*CROPS) * min(photograph.size)
    left, top = (random.uniform(0, whole - side) for whole in photograph.size)
    return photograph.resize((size, size), box=(left, top, left + side, top + side))


def _example(random: Random, picture: Image.Image) -> Example:
    """Paste shapes on a picture, each over the earlier ones, and return it with its ground truth."""
    size = picture.width
    # Number of the top shape at each pixel, from 1; 0 without a shape.
    uppermost = torch.zeros(size, size, dtype=torch.int64)
    labels: list[int] = []
    areas: list[int] = []
    for _ in range(random.randint(1, MOST)):
        label = random.randrange(1, len(CLASSES))
        for _ in range(TRIES):
            stencil = _stencil(random, CLASSES[label], size)
            covered = pil_to_tensor(stencil)[0] > 127
            left = torch.bincount(uppermost[~covered], minlength=len(labels) + 1).tolist()[1:]
            if all(visible >= VISIBLE * area for visible, area in zip(left, areas, strict=True)):
                break
        else:
            continue
        opacity = random.uniform(*OPACITIES)
        color = tuple(random.randrange(256) for _ in "RGB")
        picture.paste(color, mask=stencil.point(lambda value, opacity=opacity: value * opacity))
        labels.append(label)
        areas.append(int(covered.sum()))
        uppermost[covered] = len(labels)
    shapes = uppermost == torch.arange(1, len(labels) + 1)[:, None, None]
    # Boxes extend to the far edge of their last pixels.
    boxes = masks_to_boxes(shapes) + torch.tensor([0, 0, 1, 1])
    mask = torch.tensor([0, *labels])[uppermost]
    return Example(pil_to_tensor(picture) / 255, {"boxes": boxes, "labels": torch.tensor(labels)}, mask)


def _stencil(random: Random, name: str, size: int) -> Image.Image:
    """Return a shape in white on black, completely inside an image of this size."""
    radius = random.uniform(*RADII) * size
    corners = CORNERS.get(name)
    if corners:
        # Convert the radius of a circle to the circumradius of the regular polygon with the same area.
        radius *= math.sqrt(2 * math.pi / (corners * math.sin(2 * math.pi / corners)))
    x, y = (random.uniform(radius, size - radius) for _ in "xy")
    fine = Image.new("L", (size * FINE, size * FINE))
    circle = (x * FINE, y * FINE, radius * FINE)
    if corners:
        ImageDraw.Draw(fine).regular_polygon(circle, corners, random.uniform(0, 360), fill=255)
    else:
        ImageDraw.Draw(fine).circle(circle[:2], circle[2], fill=255)
    return fine.reduce(FINE)
