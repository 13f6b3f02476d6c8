"""Shapes pasted on photographs: a small labelled set for detection and segmentation, the same for the same seed.

Circles, squares and triangles of random size, rotation, colour and opacity lie on random crops of scikit-image's
photographs. All are drawn alike, of the same range of areas, so that neither colour nor size gives the class away.
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

# Those that lie in scikit-image's wheel. What is judged on was never seen in training, not even as a background.
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

CROPS = (0.4, 0.9)  # side of the crop, of the photograph's shorter side
RADII = (0.08, 0.18)  # of the circle of the same area, of the image's side
OPACITIES = (0.6, 1.0)
MOST = 4  # shapes in an image
VISIBLE = 0.75  # of a shape's area, at least, whatever lies on it
TRIES = 10  # places looked at before a shape is left out
FINE = 4  # pixels that a shape is drawn with for each one of the image


class Example(NamedTuple):
    """An image and what is in it.

    Attributes:
        image: (3, H, W), from 0 to 1.
        target: "boxes" (M, 4) as x1, y1, x2, y2 in pixels around what is visible of each shape, and "labels" (M,).
        mask: (H, W), the class of each pixel, 0 for the background.
    """

    image: Tensor
    target: dict[str, Tensor]
    mask: Tensor


def examples(count: int, size: int, seed: int, photographs: Sequence[str]) -> list[Example]:
    """Draw square images.

    Args:
        count: number of images.
        size: pixels of a side.
        seed: whatever is random follows from it.
        photographs: names in `skimage.data`.
    """
    random = Random(seed)
    backgrounds = [_photograph(name) for name in photographs]
    return [_example(random, _crop(random, random.choice(backgrounds), size)) for _ in range(count)]


def _photograph(name: str) -> Image.Image:
    pixels = getattr(data, name)()
    # A stereo pair comes with its disparity; the left picture will do.
    return Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels).convert("RGB")


def _crop(random: Random, photograph: Image.Image, size: int) -> Image.Image:
    side = random.uniform(*CROPS) * min(photograph.size)
    left, top = (random.uniform(0, whole - side) for whole in photograph.size)
    return photograph.resize((size, size), box=(left, top, left + side, top + side))


def _example(random: Random, picture: Image.Image) -> Example:
    """Paste shapes on the picture, each over those before it."""
    size = picture.width
    # Number of the uppermost shape at each pixel, from 1; 0 for none.
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
        colour = tuple(random.randrange(256) for _ in "RGB")
        picture.paste(colour, mask=stencil.point(lambda value, opacity=opacity: value * opacity))
        labels.append(label)
        areas.append(int(covered.sum()))
        uppermost[covered] = len(labels)
    shapes = uppermost == torch.arange(1, len(labels) + 1)[:, None, None]
    # Boxes reach to the far edge of their last pixels.
    boxes = masks_to_boxes(shapes) + torch.tensor([0, 0, 1, 1])
    mask = torch.tensor([0, *labels])[uppermost]
    return Example(pil_to_tensor(picture) / 255, {"boxes": boxes, "labels": torch.tensor(labels)}, mask)


def _stencil(random: Random, name: str, size: int) -> Image.Image:
    """Return a shape, white on black, wholly inside an image of this size."""
    radius = random.uniform(*RADII) * size
    corners = CORNERS.get(name)
    if corners:
        # From a circle's radius to that of the corners of the regular polygon of the same area.
        radius *= math.sqrt(2 * math.pi / (corners * math.sin(2 * math.pi / corners)))
    x, y = (random.uniform(radius, size - radius) for _ in "xy")
    fine = Image.new("L", (size * FINE, size * FINE))
    circle = (x * FINE, y * FINE, radius * FINE)
    if corners:
        ImageDraw.Draw(fine).regular_polygon(circle, corners, random.uniform(0, 360), fill=255)
    else:
        ImageDraw.Draw(fine).circle(circle[:2], circle[2], fill=255)
    return fine.reduce(FINE)
