"""Painted scenes, predictions for them, and their scores. Tests in other processes use them too."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featuretap.specs.preprocessing import Preprocessing
from featuretap.workflows.datasets.data_set import Boxes
from featuretap.workflows.training.tasks.detection import DetectionTask

RAW = Preprocessing(None, None, inside=True)
STILL = {"flip": 0.0, "crop_scale": 1.0}
CLASSES = ("red", "green", "blue")
PURE = {0: (255, 0, 0), 1: (0, 255, 0), 2: (0, 0, 255)}


def detection_task(**changes: Any) -> DetectionTask:
    return DetectionTask(**{"classes": CLASSES, "first_label": 1, "preprocessing": RAW, **STILL, **changes})


def paint(
    *rectangles: tuple[int, tuple[int, int, int, int]], size: tuple[int, int] = (90, 60), masks: bool = False
) -> tuple[Image.Image, Boxes]:
    """Paint rectangles in the pure color of their class on gray, and return the image with its boxes."""
    image = Image.new("RGB", size, (90, 90, 90))
    for label, (left, top, right, bottom) in rectangles:
        image.paste(PURE[label], (left, top, right, bottom))
    pixels = np.asarray(image)
    return image, Boxes(
        np.array([box for _, box in rectangles], np.float32).reshape(-1, 4),
        np.array([label for label, _ in rectangles], np.int64),
        np.zeros(len(rectangles), np.bool_),
        np.array([(pixels == PURE[label]).all(-1) for label, _ in rectangles], np.uint8).reshape(-1, *pixels.shape[:2])
        if masks
        else None,
    )


SCENE = ((0, (10, 5, 40, 30)), (1, (50, 10, 80, 50)), (2, (20, 35, 45, 55)))


def make_prediction(*found: tuple[int, tuple[float, ...], float], offset: int = 1, **more: Tensor) -> dict[str, Tensor]:
    """Return a prediction. `offset` is added to the data set's class numbers."""
    return {
        "labels": torch.tensor([label + offset for label, _, _ in found], dtype=torch.int64),
        "boxes": torch.tensor([box for _, box, _ in found]).reshape(-1, 4).float(),
        "scores": torch.tensor([score for _, _, score in found]),
        **more,
    }


def evaluate(chosen: DetectionTask, *pairs: tuple[tuple[Image.Image, Boxes], dict[str, Tensor]]) -> Any:
    measuring = chosen.evaluator(torch.device("cpu"))
    for sample, prediction in pairs:
        _, target = chosen.evaluation_transform()(*sample)
        measuring.update([prediction], [target])
    return measuring.compute()


def random_pairs(count: int, masks: bool = False) -> list[tuple[tuple[Image.Image, Boxes], dict[str, Tensor]]]:
    """Return predictions of varying quality for images with zero to three objects."""
    draw = np.random.default_rng(3)
    pairs = []
    for index in range(count):
        scene = SCENE[: index % 4]
        moved = [
            (
                int(draw.integers(3)) if draw.random() < 0.2 else label,
                np.clip(np.array(box) + draw.integers(-6, 6, 4), 0, 59),
            )
            for label, box in (*scene, SCENE[int(draw.integers(3))])
        ]
        moved = [(label, (*np.minimum(box[:2], box[2:] - 1), *box[2:])) for label, box in moved]
        found = make_prediction(*((label, tuple(map(float, box)), float(draw.random())) for label, box in moved))
        if masks:
            found["masks"] = torch.zeros(len(moved), 1, 60, 90)
            for mask, (_, (left, top, right, bottom)) in zip(found["masks"], moved, strict=True):
                mask[0, int(top) : int(bottom), int(left) : int(right)] = 0.8
        pairs.append((paint(*scene, masks=masks), found))
    return pairs
