"""Files of a reader who follows a page: photographs, street scenes with boxes and masks, published weights."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage import data
from support import ROOT

WEIGHTS = "mobilenet_v2-b0353104.pth"
"""torchvision's official MobileNetV2, under its own name."""

PHOTOGRAPHS = {"cat": data.chelsea, "cup": data.coffee, "rocket": data.rocket}
HOLIDAY = {"astronaut": data.astronaut, "cat": data.chelsea, "coffee": data.coffee, "rocket": data.rocket}
COLOURS = {1: "red", 2: "yellow"}
"""Classes of the street, "circle" and "square"."""


def belongings(folder: Path, weights: Path) -> Path:
    """Fill a folder.

    photo.jpg                    a cat, 451×300 pixels
    photographs/CLASS/*.jpg      eight crops of each of three photographs, 160×160
    holiday/*.jpg                four photographs
    street/                      a dozen images with COCO's annotations.json, and with masks
    mobilenet_v2-b0353104.pth    published weights
    examples/                    the examples of the repository
    """
    Image.fromarray(data.chelsea()).save(folder / "photo.jpg")
    _photographs(folder / "photographs")
    for name, photograph in HOLIDAY.items():
        (folder / "holiday").mkdir(exist_ok=True)
        Image.fromarray(photograph()).save(folder / "holiday" / f"{name}.jpg")
    _street(folder / "street")
    (folder / WEIGHTS).symlink_to(weights)
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=ignored)
    return folder


def _photographs(folder: Path) -> None:
    places = np.random.default_rng(0)
    for name, photograph in PHOTOGRAPHS.items():
        whole = Image.fromarray(photograph())
        (folder / name).mkdir(parents=True)
        for number in range(8):
            left, top = places.integers(0, whole.width - 240), places.integers(0, whole.height - 240)
            cut = whole.resize((160, 160), box=(left, top, left + 240, top + 240))
            cut.save(folder / name / f"{number}.jpg")


def _street(folder: Path) -> None:
    places = np.random.default_rng(0)
    whole = Image.fromarray(data.coffee())
    images, annotations = [], []
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(1, 13):
        left, top = places.integers(0, whole.width - 160), places.integers(0, whole.height - 120)
        image = whole.crop((left, top, left + 160, top + 120))
        mask = Image.new("L", image.size)
        for category, colour in COLOURS.items():
            side = int(places.integers(24, 48))
            x, y = int(places.integers(0, 80)) + 80 * (category - 1) - side // 2, int(places.integers(0, 72))
            box = [max(x, 0), y, min(max(x, 0) + side, 159), y + side]
            for drawn, value in ((image, colour), (mask, category)):
                shape = ImageDraw.Draw(drawn)
                (shape.ellipse if category == 1 else shape.rectangle)(box, fill=value)
            size = [box[2] - box[0], box[3] - box[1]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [*box[:2], *size],
                    "area": size[0] * size[1],
                    "iscrowd": 0,
                }
            )
        image.save(folder / "images" / f"{number}.jpg")
        mask.save(folder / "masks" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": image.width, "height": image.height})
    categories = [{"id": 1, "name": "circle"}, {"id": 2, "name": "square"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "classes.txt").write_text("background\ncircle\nsquare\n")
