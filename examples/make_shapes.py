"""Write a small data set for detection and segmentation: shapes on photographs, with COCO boxes and with masks.

Circles, squares and triangles of random size, rotation, color and opacity lie on random crops of scikit-image's
photographs. The validation images show two photographs that the training images do not.

    python examples/make_shapes.py shapes
    python examples/make_shapes.py shapes --images 480 --size 128 --seed 0
"""

import argparse
import json
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw
from skimage import data

CLASSES = {"circle": 0, "square": 4, "triangle": 3}
"""Class → corners."""

PHOTOGRAPHS = {
    "train": (data.astronaut, data.coffee, data.rocket, data.grass, data.brick, data.gravel),
    "val": (data.chelsea, data.retina),
}
VAL_FRACTION = 0.25
FINE = 4
"""Shapes are drawn four times as large and reduced, so that their edges are smooth."""


def draw_shape(random: Random, corners: int, size: int) -> Image.Image:
    """Return a shape in white on black, completely inside a square image."""
    radius = random.uniform(0.12, 0.22) * size
    x, y = random.uniform(radius, size - radius), random.uniform(radius, size - radius)
    stencil = Image.new("L", (FINE * size, FINE * size))
    pen, circle = ImageDraw.Draw(stencil), (FINE * x, FINE * y, FINE * radius)
    if corners:
        pen.regular_polygon(circle, corners, random.uniform(0, 360), fill=255)
    else:
        pen.circle(circle[:2], circle[2], fill=255)
    return stencil.reduce(FINE)


def draw_example(random: Random, photograph: Image.Image, size: int) -> tuple[Image.Image, Image.Image, list[dict]]:
    """Return an image, its mask, and a COCO annotation for each of one to three shapes that do not overlap."""
    side = random.uniform(0.4, 0.9) * min(photograph.size)
    left, top = random.uniform(0, photograph.width - side), random.uniform(0, photograph.height - side)
    image = photograph.resize((size, size), box=(left, top, left + side, top + side))
    mask, annotations = np.zeros((size, size), np.uint8), []
    for _ in range(random.randint(1, 3)):
        name = random.choice(list(CLASSES))
        stencil = draw_shape(random, CLASSES[name], size)
        covered = np.asarray(stencil) > 127
        if mask[covered].any():
            continue
        opacity = random.uniform(0.6, 1)
        image.paste(tuple(random.randrange(256) for _ in "RGB"), mask=stencil.point(lambda value, o=opacity: value * o))
        category = list(CLASSES).index(name) + 1
        mask[covered] = category
        rows, columns = np.nonzero(covered)
        x, y = int(columns.min()), int(rows.min())
        box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
        annotations.append({"category_id": category, "bbox": box, "area": int(covered.sum()), "iscrowd": 0})
    return image, Image.fromarray(mask), annotations


def write_part(folder: Path, part: str, count: int, size: int, random: Random) -> None:
    """Write the images, masks and annotations of the training or the validation part."""
    photographs = [Image.fromarray(photograph()).convert("RGB") for photograph in PHOTOGRAPHS[part]]
    for kind in ("images", "masks"):
        (folder / kind / part).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(1, count + 1):
        image, mask, found = draw_example(random, random.choice(photographs), size)
        image.save(folder / "images" / part / f"{number:04}.jpg", quality=90)
        mask.save(folder / "masks" / part / f"{number:04}.png")
        images.append({"id": number, "file_name": f"{number:04}.jpg", "width": size, "height": size})
        annotations += [{"image_id": number, **each} for each in found]
    content = {
        "images": images,
        "annotations": [{"id": number, **each} for number, each in enumerate(annotations, 1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
    }
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"{part}.json").write_text(json.dumps(content))


def main() -> None:
    """Write the data set and print what it contains."""
    parser = argparse.ArgumentParser(description="Write a data set of shapes on photographs.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("shapes"))
    parser.add_argument("--images", type=int, default=480, help="training and validation images together")
    parser.add_argument("--size", type=int, default=128, help="width and height in pixels")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    random = Random(asked.seed)
    validation = round(VAL_FRACTION * asked.images)
    for part, count in (("train", asked.images - validation), ("val", validation)):
        write_part(asked.folder, part, count, asked.size, random)
    (asked.folder / "classes.txt").write_text("\n".join(("background", *CLASSES)) + "\n")
    print(f"{asked.folder}: {asked.images - validation} training and {validation} validation images")


if __name__ == "__main__":
    main()
