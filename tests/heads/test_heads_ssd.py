"""SSD options that torchvision does not have: sigmoid scores, unclipped anchors and TensorFlow's resizing."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featuretap.heads.modules.ssd import resize_asymmetrically, with_remainder
from featuretap.registry import Registry


def detector(registry: Registry, head: str = "ssdlite", **options: Any) -> Any:
    torch.manual_seed(0)
    settings = {"width": 0.25, "size": 96, "num_classes": 2, "score_thresh": 0.0, **options}
    return registry.build("mobilenet_v1", head=head, **settings).eval()


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    one_hot = nn.functional.one_hot(targets, logits.shape[-1]).to(logits)
    return nn.functional.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").sum(-1)


@pytest.mark.parametrize("classes", [2, 7, 91])
def test_the_loss_of_sigmoid_scores_is_binary_cross_entropy_with_its_gradient(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(200, classes, generator=generator)).requires_grad_()
    targets = torch.randint(classes, (200,), generator=generator)
    ours = nn.functional.cross_entropy(with_remainder(logits), targets, reduction="none")
    expected = cross_entropies(logits, targets)
    assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-5)
    gradients = (torch.autograd.grad(values.sum(), logits)[0] for values in (ours, expected))
    assert torch.allclose(*gradients, atol=1e-4)


def test_the_loss_of_extreme_logits_is_finite_and_has_a_gradient() -> None:
    logits = torch.tensor([[60.0, -60.0, 0.0], [-80.0, -80.0, -80.0], [90.0, 90.0, 90.0]], requires_grad=True)
    targets = torch.tensor([0, 1, 2])
    losses = nn.functional.cross_entropy(with_remainder(logits), targets, reduction="none")
    assert torch.allclose(losses, cross_entropies(logits, targets), rtol=1e-4, atol=1e-4)
    losses.sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


@torch.no_grad()
def test_the_sigmoid_of_a_logit_is_the_softmax_of_it_and_zero(registry: Registry) -> None:
    ours, theirs = (detector(registry, scores=scores).as_detector() for scores in ("sigmoid", "softmax"))
    generator = torch.Generator().manual_seed(0)
    anchors = [torch.rand(40, 4, generator=generator).cumsum(1) * 20 for _ in range(2)]
    deltas = torch.randn(2, 40, 4, generator=generator)
    logits = torch.randn(2, 40, 2, generator=generator)
    shapes = [(96, 96), (80, 96)]
    found = ours.postprocess_detections({"bbox_regression": deltas, "cls_logits": logits}, anchors, shapes)
    logits[..., 0] = 0
    expected = theirs.postprocess_detections({"bbox_regression": deltas, "cls_logits": logits}, anchors, shapes)
    for objects, others in zip(found, expected, strict=True):
        assert len(others["scores"]) > 5
        for name, values in others.items():
            assert torch.allclose(objects[name], values), name


@torch.no_grad()
def test_each_class_is_scored_by_itself(registry: Registry) -> None:
    model = detector(registry, scores="sigmoid", num_classes=4, score_thresh=0.6).as_detector()
    logits = torch.tensor([[[9.0, 1.0, -1.0, 2.0], [-9.0, 0.0, 0.5, -3.0]]])
    outputs = {"bbox_regression": torch.zeros(1, 2, 4), "cls_logits": logits}
    anchors = [torch.tensor([[1.0, 1, 30, 30], [50, 50, 90, 90]])]
    (found,) = model.postprocess_detections(outputs, anchors, [(96, 96)])
    assert found["labels"].tolist() == [3, 1, 2]
    assert found["scores"].tolist() == pytest.approx(torch.tensor([2.0, 1.0, 0.5]).sigmoid().tolist())
    assert found["boxes"][:, 0].tolist() == [1, 1, 50]


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
@pytest.mark.parametrize("head", ["ssd", "ssdlite"])
def test_detectors_learn_to_find_a_box(registry: Registry, head: str, scores: str) -> None:
    model = detector(registry, head, scores=scores, resizing="asymmetric", clip_anchors=False).train()
    images = [torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(0))] * 2
    boxes = [{"boxes": torch.tensor([[8.0, 8, 40, 48]]), "labels": torch.tensor([1])}] * 2
    optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = sum(model(images, boxes).values())
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_anchors_are_wider_than_the_image_unless_they_are_clipped(registry: Registry) -> None:
    kinds = (detector(registry, clip_anchors=clip).as_detector().anchor_generator for clip in (True, False))
    clipped, free = (torch.cat([pairs.clamp(0, 1) if g.clip else pairs for pairs in g._wh_pairs]) for g in kinds)
    assert float(clipped.max()) == 1
    assert float(free.max()) == pytest.approx(0.95 * 3**0.5)


@pytest.mark.parametrize(
    ("row", "size", "expected"),
    [
        ([0.0, 1, 2, 3], 2, [0.0, 2]),
        ([0.0, 4], 4, [0.0, 2, 4, 4]),
        ([5.0, 8, 11], 3, [5.0, 8, 11]),
        ([0.0, 1, 2, 3, 4], 2, [0.0, 2.5]),
    ],
)
def test_asymmetric_resizing_lets_the_first_pixels_coincide(row: list[float], size: int, expected: list[float]) -> None:
    for image in (torch.tensor([[row]]), torch.tensor([[row]]).mT):
        height, width = (size, 1) if image.shape[-1] == 1 else (1, size)
        assert resize_asymmetrically(image, height, width).flatten().tolist() == expected


def test_boxes_are_resized_with_their_images(registry: Registry) -> None:
    transform = detector(registry, resizing="asymmetric", size=(60, 90)).as_detector().transform
    box = {"boxes": torch.tensor([[10.0, 10, 20, 30]])}
    images, targets = transform([torch.rand(3, 30, 180)], [box])
    assert images.image_sizes == [(60, 90)]
    assert targets[0]["boxes"].tolist() == [[5, 20, 10, 60]]
    assert box["boxes"].tolist() == [[10, 10, 20, 30]]


@pytest.mark.parametrize("kernel", [1, 3])
def test_ssd_has_one_convolution_for_each_map_and_kind(registry: Registry, kernel: int) -> None:
    model = detector(registry, "ssd", predictor_kernel=kernel, num_classes=5)
    for name, columns in (("classification_head", 5), ("regression_head", 4)):
        predictors = getattr(model.head.predictor, name).module_list
        shapes = [tuple(conv.weight.shape) for conv in predictors]
        channels = [128, 256, 128, 64, 64, 32]
        boxes = [3, 6, 6, 6, 6, 6]
        expected = [(columns * n, inner, kernel, kernel) for n, inner in zip(boxes, channels, strict=True)]
        assert shapes == expected
    spec: Any = registry.spec("mobilenet_v1", head="ssd", predictor_kernel=kernel, num_classes=5, width=0.25)
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("head", ["ssd", "ssdlite"])
def test_extra_layers_pad_as_the_backbone_does(registry: Registry, head: str) -> None:
    symmetric, same = (detector(registry, head, padding=padding) for padding in ("symmetric", "same"))
    same.load_state_dict(symmetric.state_dict())
    maps = {"C4": torch.rand(1, 128, 6, 6), "C5": torch.rand(1, 256, 8, 8)}
    outputs = [list(model.head.neck(maps).values()) for model in (symmetric, same)]
    assert [tuple(x.shape) for x in outputs[0]] == [tuple(x.shape) for x in outputs[1]]
    # At an even size, TensorFlow pads only the end.
    conv = same.head.neck.extra[0][1][-3]
    inner = symmetric.head.neck.extra[0][0](maps["C5"])
    padded = nn.functional.pad(inner, (0, 1, 0, 1))
    expected = nn.functional.conv2d(padded, conv.weight, stride=2, groups=conv.groups)
    assert np.allclose(same.head.neck.extra[0][1][:2](inner), expected, atol=1e-6)
    assert not np.allclose(symmetric.head.neck.extra[0][1][0](inner), expected, atol=1e-3)
