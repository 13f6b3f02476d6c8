"""Scenes with masks, logits for them, and their scores. Tests in other processes use them too."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from featuretap.specs.preprocessing import Preprocessing
from featuretap.workflows.datasets.data_set import IGNORED
from featuretap.workflows.training.tasks.segmentation import SegmentationTask

SIZE = 40
WHOLE = Preprocessing(SIZE, None, (0.5, 0.4, 0.3), (0.25, 0.25, 0.25))
STILL = {"flip": 0.0, "crop_scale": 1.0}
CLASSES = ("background", "red", "blue")
COLOURS = np.array([(100, 100, 100), (255, 0, 0), (0, 0, 255)], np.uint8)


def segmentation_task(**changes: Any) -> SegmentationTask:
    given = {"classes": CLASSES, "preprocessing": WHOLE, **STILL, "label_smoothing": 0.0}
    return SegmentationTask(**{**given, **changes})


def scene(width: int = 90, height: int = 60) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Return a red and a blue rectangle on gray, and the class of each pixel."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 6 : height // 2, width // 9 : width // 3] = 1
    mask[height // 3 :, width // 2 :] = 2
    return Image.fromarray(COLOURS[mask]), mask


def logits_of(mask: Any) -> Tensor:
    """Return logits (K, H, W) that predict a mask (H, W)."""
    return F.one_hot(torch.tensor(mask).long(), len(CLASSES)).permute(2, 0, 1) * 5.0


def evaluate(*pairs: tuple[Tensor, Any], chosen: SegmentationTask | None = None) -> Any:
    measuring = (chosen or segmentation_task()).evaluator(torch.device("cpu"))
    for logits, mask in pairs:
        measuring.update([logits], [torch.tensor(mask, dtype=torch.uint8)])
    return measuring.compute()


def random_pairs(count: int) -> list[tuple[Tensor, Any]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(3, 6 + index, 7, generator=generator),
            np.where(np.arange(7) % 5 == 4, IGNORED, torch.randint(3, (6 + index, 7), generator=generator).numpy()),
        )
        for index in range(count)
    ]
