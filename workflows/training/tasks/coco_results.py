"""Results of detection other than mAP: the confusion matrix, and predictions and objects in COCO format.

All functions read the state of torchmetrics' `MeanAveragePrecision`, in which boxes are x, y, width, height.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_convert, box_iou

State = Mapping[str, Any]

MIN_SCORE, MIN_OVERLAP = 0.3, 0.5
"""Minimum score of predictions in the confusion matrix (as of boxes in reports), and minimum IoU (as in mAP@0.5)."""


def count_confusions(state: State, first_label: int, classes: int) -> NDArray[np.int64]:
    """Return the confusion matrix by true class (row) and predicted class (column), with the background last.

    Predictions, in order of decreasing score, are matched with the object of any class that they overlap most.
    Unmatched predictions and objects count as background, except predictions that overlap an ignored object.

    Args:
        state: state of the metric.
        first_label: the model's label of the first class.
        classes: number of classes.

    Returns:
        Counts (classes + 1, classes + 1).
    """
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    predicted = zip(state["detection_box"], state["detection_labels"], state["detection_scores"], strict=True)
    true = zip(state["groundtruth_box"], state["groundtruth_labels"], state["groundtruth_crowds"], strict=True)
    for (boxes, labels, scores), (true_boxes, true_labels, crowds) in zip(predicted, true, strict=True):
        overlaps = box_iou(_corners(boxes), _corners(true_boxes))
        missed = {index for index, crowd in enumerate(crowds.tolist()) if not crowd}
        for index in scores.argsort(descending=True, stable=True).tolist():
            if scores[index] < MIN_SCORE:
                break
            near = {other: float(overlaps[index, other]) for other in range(len(crowds))}
            best = max(missed, key=lambda other: near[other], default=None)
            column = int(labels[index]) - first_label
            if best is not None and near[best] >= MIN_OVERLAP:
                matrix[int(true_labels[best]) - first_label, column] += 1
                missed.remove(best)
            elif not any(crowds[other] and near[other] >= MIN_OVERLAP for other in near):
                matrix[classes, column] += 1
        for index in missed:
            matrix[int(true_labels[index]) - first_label, classes] += 1
    return matrix


def list_predictions(state: State, ids: Sequence[int], first_label: int) -> list[dict[str, Any]]:
    """Return predictions in COCO's results format.

    Args:
        state: state of the metric.
        ids: ids of the images.
        first_label: the model's label of the first class, which becomes category 1.

    Returns:
        The results.
    """
    return [
        {**each, "score": float(score)}
        for each, score in zip(
            _annotations(state, "detection", ids, first_label), _joined(state["detection_scores"]), strict=True
        )
    ]


def list_objects(state: State, ids: Sequence[int], first_label: int) -> list[dict[str, Any]]:
    """Return ground truth objects as COCO annotations.

    Args:
        state: state of the metric.
        ids: ids of the images.
        first_label: the model's label of the first class, which becomes category 1.

    Returns:
        The annotations.
    """
    annotations = zip(
        _annotations(state, "groundtruth", ids, first_label), _joined(state["groundtruth_crowds"]), strict=True
    )
    return [
        {"id": number, **each, "area": each["bbox"][2] * each["bbox"][3], "iscrowd": int(crowd)}
        for number, (each, crowd) in enumerate(annotations, 1)
    ]


def _annotations(state: State, kind: str, ids: Sequence[int], first_label: int) -> Iterator[dict[str, Any]]:
    masks = state[f"{kind}_mask"] or [()] * len(ids)
    for image, boxes, labels, outlines in zip(ids, state[f"{kind}_box"], state[f"{kind}_labels"], masks, strict=True):
        for index, (box, label) in enumerate(zip(boxes.reshape(-1, 4).tolist(), labels.tolist(), strict=True)):
            more = {}
            if outlines:
                size, counts = outlines[index]
                text = counts.decode() if isinstance(counts, bytes) else counts
                more = {"segmentation": {"size": list(map(int, size)), "counts": text}}
            yield {"image_id": image, "category_id": label - first_label + 1, "bbox": box, **more}


def _joined(values: Sequence[Tensor]) -> list[float]:
    return torch.cat([torch.zeros(0), *values]).tolist()


def _corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes.reshape(-1, 4).float(), "xywh", "xyxy")
