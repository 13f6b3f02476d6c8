"""The detection task: training samples, the loss, and the image size set by the user."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.detection_samples import CLASSES, PURE, RAW, SCENE, detection_task, paint
from support.heads import DETECTORS, SMALL
from torch import Tensor

from benchmarks.shapes import TRAINING, examples
from featuretap.registry import Registry
from featuretap.registry.errors import OptionError
from featuretap.registry.specs import HeadSpec
from featuretap.workflows.datasets.data_set import Boxes
from featuretap.workflows.training.tasks.detection import size_options


def coloured(image: Tensor, label: int) -> Tensor:
    """Return a mask (H, W) of the pixels of an image (3, H, W) that have exactly the color of a class."""
    return ((image * 255).round() == torch.tensor(PURE[label])[:, None, None]).all(0)


@pytest.mark.parametrize("masks", [False, True])
def test_boxes_and_masks_stay_around_their_objects_through_crops_and_mirroring(masks: bool) -> None:
    transform = detection_task(flip=0.5, crop_scale=0.1, masks=masks).training_transform()
    sizes, numbers = set(), set()
    for _ in range(60):
        image, target = transform(*paint(*SCENE, masks=masks))
        sizes.add(tuple(image.shape))
        numbers.add(len(target["labels"]))
        for place, (box, label) in enumerate(
            zip(target["boxes"].int().tolist(), target["labels"].tolist(), strict=True)
        ):
            left, top, right, bottom = box
            where = coloured(image, label - 1)
            assert where[top:bottom, left:right].all()
            assert where.sum() == (bottom - top) * (right - left)
            if masks:
                assert torch.equal(target["masks"][place].bool(), where)
        assert ("masks" in target) is masks
    assert len(sizes) > 20
    assert numbers == {1, 2, 3}


def test_a_crop_has_at_least_the_area_that_was_asked_for() -> None:
    transform = detection_task(flip=0.0, crop_scale=0.5).training_transform()
    areas = [image.shape[1] * image.shape[2] / (90 * 60) for image, _ in (transform(*paint(*SCENE)) for _ in range(60))]
    # Crops are truncated to integer sizes.
    assert 0.47 < min(areas) < 0.75
    assert max(areas) == 1


def test_mirroring_mirrors_boxes() -> None:
    _, target = detection_task(flip=1.0, crop_scale=1.0).training_transform()(*paint(SCENE[0]))
    assert target["boxes"].tolist() == [[50, 5, 80, 30]]


def test_without_augmentation_training_and_evaluation_samples_are_equal() -> None:
    sample = paint(*SCENE, masks=True)
    learned, judged = detection_task().training_transform()(*sample), detection_task().evaluation_transform()(*sample)
    assert torch.equal(learned[0], judged[0])
    assert judged[0].shape == (3, 60, 90)
    assert judged[0].max() == 1
    assert judged[1].pop("iscrowd").tolist() == [0, 0, 0]
    assert {name: values.tolist() for name, values in learned[1].items()} == {
        name: values.tolist() for name, values in judged[1].items()
    }


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_a_policy_changes_colours_and_nothing_else(policy: Any) -> None:
    transform = detection_task(flip=0.0, crop_scale=1.0, augment=policy).training_transform()
    same = []
    for _ in range(20):
        image, target = transform(*paint(*SCENE))
        assert target["boxes"].tolist() == [list(box) for _, box in SCENE]
        assert image.shape == (3, 60, 90)
        same.append(bool(coloured(image, 0).any()))
    assert not all(same)


def test_ignored_objects_are_left_out_of_training_and_marked_for_evaluation() -> None:
    image, found = paint(*SCENE, masks=True)
    found = found._replace(ignored=np.array([False, True, False]))
    _, learned = detection_task().training_transform()(image, found)
    assert learned["labels"].tolist() == [1, 3]
    assert learned["boxes"].tolist() == [list(SCENE[0][1]), list(SCENE[2][1])]
    assert torch.equal(learned["masks"], torch.tensor(found.masks[[0, 2]]))
    assert "iscrowd" not in learned
    _, judged = detection_task().evaluation_transform()(image, found)
    assert judged["labels"].tolist() == [1, 2, 3]
    assert judged["iscrowd"].tolist() == [0, 1, 0]


def test_images_of_any_mode_are_converted_to_the_models_channels() -> None:
    image, found = paint(*SCENE)
    one = detection_task(preprocessing=RAW.for_channels(1), flip=0.5, crop_scale=0.35, augment="rand")
    assert one.training_transform()(image.convert("RGBA"), found)[0].shape[0] == 1
    assert one.evaluation_transform()(image, found)[0].shape == (1, 60, 90)
    assert detection_task().training_transform()(image.convert("L"), found)[0].shape == (3, 60, 90)


@pytest.mark.parametrize("size", [(1, 1), (40, 1), (2, 3)])
def test_a_tiny_image_is_not_cut_to_nothing(size: tuple[int, int]) -> None:
    transform = detection_task(flip=0.5, crop_scale=0.1).training_transform()
    for _ in range(20):
        image, target = transform(*paint((0, (0, 0, 1, 1)), size=size))
        assert image.numel() > 0
        assert len(target["boxes"]) == len(target["labels"])


@pytest.mark.parametrize("masks", [False, True])
def test_an_image_without_objects_has_an_empty_target(masks: bool) -> None:
    image, found = paint(masks=masks)
    for transform in (
        detection_task(flip=0.5, crop_scale=0.35).training_transform(),
        detection_task().evaluation_transform(),
    ):
        _, target = transform(image, found)
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == (0,)
        assert target["labels"].dtype == torch.int64
        assert not masks or target["masks"].shape == (0, 60, 90)


def test_transforms_can_be_pickled() -> None:
    varied = detection_task(flip=0.5, crop_scale=0.35, augment="rand")
    for transform in (varied.training_transform(), varied.evaluation_transform()):
        image, target = pickle.loads(pickle.dumps(transform))(*paint(*SCENE))
        assert type(image) is Tensor
        assert all(type(values) is Tensor for values in target.values())


def test_a_batch_is_a_list_of_images_and_one_of_targets() -> None:
    samples = [detection_task().evaluation_transform()(*paint(*SCENE, size=size)) for size in ((90, 60), (80, 70))]
    images, targets = detection_task().collate(samples)
    assert [tuple(image.shape) for image in images] == [(3, 60, 90), (3, 70, 80)]
    assert [len(target["labels"]) for target in targets] == [3, 3]


@pytest.mark.parametrize("head", DETECTORS)
@pytest.mark.parametrize("empty", ["one", "both"])
def test_images_without_objects_are_used_as_negatives(registry: Registry, head: str, empty: str) -> None:
    """The loss is finite and every parameter has a gradient; otherwise distributed training would wait forever.

    SSD samples three negative locations per positive one, so a batch without objects has a loss of zero.
    """
    offset = int(registry.head(head).min_classes == 2)
    chosen = detection_task(first_label=offset, masks=head == "mask_rcnn")
    model = registry.build(
        "mobilenet_v3_small", head=head, num_classes=len(CLASSES) + offset, width=0.25, **SMALL[head]
    ).train()
    transform = chosen.training_transform()
    full, bare = (paint(*scene, masks=chosen.masks) for scene in (SCENE, ()))
    scenes = [bare if empty == "both" else full, bare]
    loss = chosen.loss(model, *chosen.collate([transform(*scene) for scene in scenes]))
    loss.backward()
    assert loss.isfinite()
    assert (loss == 0) == (head in ("ssd", "ssdlite") and empty == "both")
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())  # type: ignore[union-attr]


def test_a_detector_can_overfit_a_few_images(registry: Registry) -> None:
    shown = examples(4, 96, 0, TRAINING[:2])
    chosen = detection_task(classes=("circle", "square", "triangle"))
    samples = []
    for example in shown:
        image = Image.fromarray((example.image.permute(1, 2, 0) * 255).byte().numpy())
        found = Boxes(
            example.target["boxes"].numpy(),
            example.target["labels"].numpy() - 1,
            np.zeros(len(example.target["labels"]), np.bool_),
        )
        samples.append((image, found))
    model = registry.build("mobilenet_v3_small", head="ssdlite", num_classes=4, size=96, width=0.5).train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    transform = chosen.training_transform()
    losses = []
    for _ in range(30):
        loss = chosen.loss(model, *chosen.collate([transform(*sample) for sample in samples]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("ssdlite", {"size": 320}),
        ("retinanet", {"min_size": 320, "max_size": 533}),
        ("fcos", {"min_size": 320, "max_size": 533}),
        ("faster_rcnn", {"min_size": 320, "max_size": 533}),
        ("mask_rcnn", {"min_size": 320, "max_size": 533}),
    ],
)
def test_size_sets_the_size_options_of_the_head(registry: Registry, head: str, options: dict[str, int]) -> None:
    assert size_options(registry.head(head), 320) == options
    registry.spec("mobilenet_v3_small", head=head, **options)


def test_size_800_sets_torchvisions_default_sizes(registry: Registry) -> None:
    assert size_options(registry.head("retinanet"), 800) == {"min_size": 800, "max_size": 1333}


def test_size_is_refused_for_a_head_without_size_options() -> None:
    head = HeadSpec("finder", reads=("C5",), factory="somewhere:finder", task="detection", options={"min_size": 3})
    with pytest.raises(OptionError) as raised:
        size_options(head, 320)
    assert str(raised.value) == (
        "head 'finder' does not support size=320: it has neither an option 'size' nor 'min_size' and 'max_size'; leave "
        "size out"
    )
