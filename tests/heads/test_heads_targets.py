"""Training targets of detectors: invalid targets, and images without boxes."""

import pytest
import torch
from support.heads import DETECTORS, build_head, images

from featuretap.registry import Registry
from featuretap.registry.errors import OptionError


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "the numbers of images (1) and targets (0) differ; give one dict for each image"),
        ([{"boxes": torch.ones(0, 4)}], "targets[0] has no 'labels'; give boxes (M, 4) and labels (M,)"),
        ([{"labels": torch.ones(0).long()}], "targets[0] has no 'boxes'; give boxes (M, 4) and labels (M,)"),
        (
            [{"boxes": torch.tensor([[1.0, 2, 30, 40]] * 2), "labels": torch.tensor([1, 4])}],
            "targets[0] has labels from 1 to 4, but the head has classes 0 to 3; build it with num_classes=5, or more",
        ),
        (
            [{"boxes": torch.tensor([[1.0, 2, 30, 40]]), "labels": torch.tensor([-1])}],
            "targets[0] has labels from -1 to -1, but the head has classes 0 to 3; count them from 0",
        ),
    ],
)
def test_targets_that_do_not_fit_are_refused_in_training(
    registry: Registry, targets: list[dict[str, torch.Tensor]], message: str
) -> None:
    detector = registry.build("mobilenet_v2_050", head="ssdlite", num_classes=4)
    with pytest.raises(OptionError) as error:
        detector([torch.zeros(3, 64, 64)], targets)
    assert str(error.value) == message


BAD_TARGETS = [
    (None, AssertionError, "targets should not be none when in training mode"),
    (torch.tensor([[5.0, 5.0, 5.0, 20.0]]), AssertionError, "All bounding boxes should have positive height and width"),
    (torch.tensor([5.0, 5.0, 9.0, 20.0]), AssertionError, "Expected target boxes to be a tensor of shape"),
]


@pytest.mark.parametrize("head", DETECTORS)
@pytest.mark.parametrize(("boxes", "error", "message"), BAD_TARGETS)
def test_malformed_targets_are_refused_as_torchvision_refuses_them(
    registry: Registry, head: str, boxes: torch.Tensor | None, error: type[Exception], message: str
) -> None:
    model = build_head(registry, "mobilenet_v2_050", head).train()
    given = None if boxes is None else [{"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64)}]
    with pytest.raises(error, match=message):
        model(images(1, 64, 96), given)


@pytest.mark.parametrize("head", DETECTORS)
def test_detectors_train_on_images_without_boxes(registry: Registry, head: str) -> None:
    model = build_head(registry, "mobilenet_v2_050", head).train()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = model(images(2, 64, 96), [{**empty, "masks": torch.zeros(0, 64, 96, dtype=torch.uint8)}] * 2)
    assert all(torch.isfinite(loss) for loss in losses.values())
