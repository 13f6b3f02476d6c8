"""Helpers for the head tests: small settings, images and targets."""

from typing import Any

import torch
from torch import Tensor, nn

from featuretap.registry import Registry

DETECTORS = ("ssd", "ssdlite", "retinanet", "fcos", "faster_rcnn", "mask_rcnn")
SEGMENTERS = ("lraspp", "deeplab_v3")
HEADS = ("classification", "fpn", *SEGMENTERS, *DETECTORS)
FAMILIES = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")

RCNN = {"rpn_post_nms_top_n_train": 40, "rpn_post_nms_top_n_test": 40, "box_detections_per_img": 4}

# Detectors resize their images. Small sizes keep the tests fast; odd sizes reveal rounding mistakes.
SMALL: dict[str, dict[str, Any]] = {
    "ssd": {"size": (97, 131), "detections_per_img": 7, "predictor_kernel": 1},
    "ssdlite": {"size": (97, 131), "detections_per_img": 7},
    "retinanet": {"min_size": 65, "max_size": 99, "score_thresh": 0.0, "detections_per_img": 7},
    "fcos": {"min_size": 65, "max_size": 99, "score_thresh": 0.0, "detections_per_img": 7},
    "faster_rcnn": {"min_size": 65, "max_size": 99, "box_score_thresh": 0.0, **RCNN},
    "mask_rcnn": {"min_size": 65, "max_size": 99, "box_score_thresh": 0.0, **RCNN},
}


def build_head(registry: Registry, name: str, head: str, **options: object) -> nn.Module:
    """Return a model for small images, with three classes if its head has classes."""
    classes = {} if head == "fpn" else {"num_classes": 3}
    return registry.build(name, head=head, **classes, **SMALL.get(head, {}), **options)


def images(batch: int, height: int, width: int, channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(height + width)
    return [torch.rand(channels, height, width, generator=generator) for _ in range(batch)]


def targets(batch: int, height: int, width: int) -> list[dict[str, Tensor]]:
    """Return one box for each image. In a batch of several images, the last one has no box."""
    found = []
    for index in range(batch):
        boxes = torch.tensor([[3.0, 4.0, width / 2, height / 2]])[: 0 if index == batch - 1 > 0 else 1]
        masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
        masks[:, 4 : height // 2, 3 : width // 2] = 1
        found.append({"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64), "masks": masks})
    return found


def loss_of(model: nn.Module, head: str, batch: int, height: int, width: int, device: Any = "cpu") -> Tensor:
    """Return the training loss of any head as one number."""
    pixels = [image.to(device) for image in images(batch, height, width)]
    if head in DETECTORS:
        truth = [
            {name: tensor.to(device) for name, tensor in target.items()} for target in targets(batch, height, width)
        ]
        return torch.stack(list(model(pixels, truth).values())).sum()
    out = model(torch.stack(pixels))
    return sum(values.float().square().mean() for values in (out.values() if isinstance(out, dict) else (out,)))


def outputs(model: nn.Module, head: str, given: list[Tensor]) -> list[Tensor]:
    """Return all tensors that a model returns in evaluation mode."""
    with torch.inference_mode():
        out = model(given) if head in DETECTORS else model(torch.stack(given))
    tables = out if isinstance(out, list) else [out] if isinstance(out, dict) else [{"out": out}]
    return [tensor for table in tables for tensor in table.values()]
