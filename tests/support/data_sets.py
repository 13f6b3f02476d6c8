"""Small data sets on disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featuretap.workflows.datasets.data_set import Sample


def picture(path: Path, size: tuple[int, int] = (12, 8), value: int = 128) -> Path:
    """Write a picture of one color with this width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def classes_of(folder: Path, **counts: int) -> Path:
    """Write a folder for each class, with this number of pictures."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(folder / name / f"{name}{number}.png")
    return folder


def a_box(number: int, image: int, box: list[Any], category: int = 7, **more: Any) -> dict[str, Any]:
    """Return an annotation in COCO's format."""
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0, **more}


def coco(path: Path, annotations: list[Any], names: tuple[str, ...] = ("a.png", "b.png"), **more: Any) -> Path:
    """Write a file in COCO's format: images 1, 2, … of 12×8 pixels, category 7 "cat" and 3 "dog"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [
            {"id": number, "file_name": name, "width": 12, "height": 8} for number, name in enumerate(names, start=1)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": annotations,
        **more,
    }
    path.write_text(json.dumps(content))
    return path


def voc(
    path: Path, *objects: tuple[str, tuple[object, object, object, object]], size: str = "12 8", extra: str = ""
) -> Path:
    """Write a file in VOC's format for an image of this width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size.split()
    texts = [
        f"<object><name>{name}</name>{extra}<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for name, (x1, y1, x2, y2) in objects
    ]
    path.write_text(
        f"<annotation><size><width>{width}</width><height>{height}</height></size>{''.join(texts)}</annotation>"
    )
    return path


def mask(path: Path, values: Any, mode: str = "L") -> Path:
    """Write a mask with these rows of values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(values, np.uint8))
    if mode == "P":
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255] + [9, 9, 9] * 253)
    image.convert(mode).save(path)
    return path


def labels_of(part: Sequence[Sample]) -> list[int | None]:
    """Return the class of each sample."""
    return [sample.label for sample in part]


def yolo_labels(path: Path, *lines: str) -> Path:
    """Write a label file in YOLO's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
