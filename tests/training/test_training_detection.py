"""Detection as a task: what is learned from, what is lost, and what is counted."""

import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.heads import DETECTORS, SMALL
from torch import Tensor, distributed, multiprocessing
from torchmetrics.detection import MeanAveragePrecision

from benchmarks.shapes import TRAINING, examples
from featuretap.datasets.data_set import Boxes
from featuretap.registry import Registry
from featuretap.registry.errors import OptionError
from featuretap.registry.preprocessing import Preprocessing
from featuretap.registry.specs import HeadSpec
from featuretap.training.tasks.detection import DetectionTask, sized
from featuretap.training.tasks.task import Augmentation, ClassScore

RAW = Preprocessing(None, None, inside=True)
STILL = Augmentation(flip=0.0, scale=1.0)
CLASSES = ("red", "green", "blue")
PURE = {0: (255, 0, 0), 1: (0, 255, 0), 2: (0, 0, 255)}


def task(**changes: Any) -> DetectionTask:
    return DetectionTask(
        **{"classes": CLASSES, "first_label": 1, "preprocessing": RAW, "augmentation": STILL, **changes}
    )


def painted(
    *rectangles: tuple[int, tuple[int, int, int, int]], size: tuple[int, int] = (90, 60), masks: bool = False
) -> tuple[Image.Image, Boxes]:
    """Rectangles of the pure colour of their class on grey, and their boxes."""
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


def coloured(image: Tensor, label: int) -> Tensor:
    """(H, W), where an image (3, H, W) has the pure colour of a class."""
    return ((image * 255).round() == torch.tensor(PURE[label])[:, None, None]).all(0)


@pytest.mark.parametrize("masks", [False, True])
def test_boxes_and_masks_stay_around_their_objects_through_crops_and_mirroring(masks: bool) -> None:
    transform = task(augmentation=Augmentation(flip=0.5, scale=0.1), masks=masks).training_transform()
    sizes, numbers = set(), set()
    for _ in range(60):
        image, target = transform(*painted(*SCENE, masks=masks))
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
    transform = task(augmentation=Augmentation(flip=0.0, scale=0.5)).training_transform()
    areas = [
        image.shape[1] * image.shape[2] / (90 * 60) for image, _ in (transform(*painted(*SCENE)) for _ in range(60))
    ]
    # Sides are cut to whole pixels.
    assert 0.47 < min(areas) < 0.75
    assert max(areas) == 1


def test_mirroring_mirrors_boxes() -> None:
    _, target = task(augmentation=Augmentation(flip=1.0, scale=1.0)).training_transform()(*painted(SCENE[0]))
    assert target["boxes"].tolist() == [[50, 5, 80, 30]]


def test_without_augmentation_the_sample_is_the_one_that_is_judged() -> None:
    sample = painted(*SCENE, masks=True)
    learned, judged = task().training_transform()(*sample), task().judging_transform()(*sample)
    assert torch.equal(learned[0], judged[0])
    assert judged[0].shape == (3, 60, 90)
    assert judged[0].max() == 1
    assert judged[1].pop("iscrowd").tolist() == [0, 0, 0]
    assert {name: values.tolist() for name, values in learned[1].items()} == {
        name: values.tolist() for name, values in judged[1].items()
    }


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_a_policy_changes_colours_and_nothing_else(policy: Any) -> None:
    transform = task(augmentation=Augmentation(flip=0.0, scale=1.0, policy=policy)).training_transform()
    same = []
    for _ in range(20):
        image, target = transform(*painted(*SCENE))
        assert target["boxes"].tolist() == [list(box) for _, box in SCENE]
        assert image.shape == (3, 60, 90)
        same.append(bool(coloured(image, 0).any()))
    assert not all(same)


def test_ignored_objects_are_not_learned_from_and_are_marked_for_judging() -> None:
    image, found = painted(*SCENE, masks=True)
    found = found._replace(ignored=np.array([False, True, False]))
    _, learned = task().training_transform()(image, found)
    assert learned["labels"].tolist() == [1, 3]
    assert learned["boxes"].tolist() == [list(SCENE[0][1]), list(SCENE[2][1])]
    assert torch.equal(learned["masks"], torch.tensor(found.masks[[0, 2]]))
    assert "iscrowd" not in learned
    _, judged = task().judging_transform()(image, found)
    assert judged["labels"].tolist() == [1, 2, 3]
    assert judged["iscrowd"].tolist() == [0, 1, 0]


def test_images_of_any_mode_become_the_channels_of_the_model() -> None:
    image, found = painted(*SCENE)
    one = task(preprocessing=RAW.for_channels(1), augmentation=Augmentation(policy="rand"))
    assert one.training_transform()(image.convert("RGBA"), found)[0].shape[0] == 1
    assert one.judging_transform()(image, found)[0].shape == (1, 60, 90)
    assert task().training_transform()(image.convert("L"), found)[0].shape == (3, 60, 90)


@pytest.mark.parametrize("size", [(1, 1), (40, 1), (2, 3)])
def test_a_tiny_image_is_not_cut_to_nothing(size: tuple[int, int]) -> None:
    transform = task(augmentation=Augmentation(scale=0.1)).training_transform()
    for _ in range(20):
        image, target = transform(*painted((0, (0, 0, 1, 1)), size=size))
        assert image.numel() > 0
        assert len(target["boxes"]) == len(target["labels"])


@pytest.mark.parametrize("masks", [False, True])
def test_an_image_without_objects_has_an_empty_target(masks: bool) -> None:
    image, found = painted(masks=masks)
    for transform in (task(augmentation=Augmentation()).training_transform(), task().judging_transform()):
        _, target = transform(image, found)
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == (0,)
        assert target["labels"].dtype == torch.int64
        assert not masks or target["masks"].shape == (0, 60, 90)


def test_transforms_can_go_to_the_processes_of_a_loader() -> None:
    varied = task(augmentation=Augmentation(policy="rand"))
    for transform in (varied.training_transform(), varied.judging_transform()):
        image, target = pickle.loads(pickle.dumps(transform))(*painted(*SCENE))
        assert type(image) is Tensor
        assert all(type(values) is Tensor for values in target.values())


def test_a_batch_is_a_list_of_images_and_one_of_targets() -> None:
    samples = [task().judging_transform()(*painted(*SCENE, size=size)) for size in ((90, 60), (80, 70))]
    images, targets = task().collate(samples)
    assert [tuple(image.shape) for image in images] == [(3, 60, 90), (3, 70, 80)]
    assert [len(target["labels"]) for target in targets] == [3, 3]


@pytest.mark.parametrize("head", DETECTORS)
@pytest.mark.parametrize("empty", ["one", "both"])
def test_images_without_objects_are_learned_from_as_negatives(registry: Registry, head: str, empty: str) -> None:
    """The losses are finite, and every parameter has a gradient, for which processes would else wait.

    SSD learns from three times as many places without an object as there are with one, so from none if all are empty.
    """
    offset = int(registry.head(head).min_classes == 2)
    chosen = task(first_label=offset, masks=head == "mask_rcnn")
    model = registry.build(
        "mobilenet_v3_small", head=head, num_classes=len(CLASSES) + offset, width=0.25, **SMALL[head]
    ).train()
    transform = chosen.training_transform()
    full, bare = (painted(*scene, masks=chosen.masks) for scene in (SCENE, ()))
    scenes = [bare if empty == "both" else full, bare]
    loss = chosen.loss(model, *chosen.collate([transform(*scene) for scene in scenes]))
    loss.backward()
    assert loss.isfinite()
    assert (loss == 0) == (head == "ssdlite" and empty == "both")
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())  # type: ignore[union-attr]


def test_a_detector_learns_by_heart_what_it_is_shown(registry: Registry) -> None:
    shown = examples(4, 96, 0, TRAINING[:2])
    chosen = task(classes=("circle", "square", "triangle"))
    samples = []
    for example in shown:
        image = Image.fromarray((example.image.permute(1, 2, 0) * 255).byte().numpy())
        found = Boxes(
            example.target["boxes"].numpy(),
            example.target["labels"].numpy() - 1,
            np.zeros(len(example.target["labels"]), np.bool_),
        )
        samples.append((image, found))
    model = registry.build("mobilenet_v3_small", head="ssdlite", num_classes=4, size=96).train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    transform = chosen.training_transform()
    losses = []
    for _ in range(50):
        loss = chosen.loss(model, *chosen.collate([transform(*sample) for sample in samples]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


# What is counted.

Rectangle = tuple[int, tuple[int, int, int, int]]


def said(*found: tuple[int, tuple[float, ...], float], offset: int = 1, **more: Tensor) -> dict[str, Tensor]:
    """A prediction, of classes of the data set."""
    return {
        "labels": torch.tensor([label + offset for label, _, _ in found], dtype=torch.int64),
        "boxes": torch.tensor([box for _, box, _ in found]).reshape(-1, 4).float(),
        "scores": torch.tensor([score for _, _, score in found]),
        **more,
    }


def judged(chosen: DetectionTask, *pairs: tuple[tuple[Image.Image, Boxes], dict[str, Tensor]]) -> Any:
    measuring = chosen.measuring(torch.device("cpu"))
    for sample, prediction in pairs:
        _, target = chosen.judging_transform()(*sample)
        measuring.update([prediction], [target])
    return measuring.compute()


@pytest.mark.parametrize("offset", [0, 1])
def test_perfect_predictions_have_a_score_of_1(offset: int) -> None:
    right = [(label, box, 0.9) for label, box in SCENE]
    judgement = judged(task(first_label=offset), (painted(*SCENE), said(*right, offset=offset)))
    assert judgement.scores == {"mAP": 1, "mAP@0.5": 1, "mAP@0.75": 1}
    assert next(iter(judgement.scores)) == "mAP"
    assert judgement.per_class == (("red", 1, 1.0), ("green", 1, 1.0), ("blue", 1, 1.0))
    assert judgement.confusion is None


def test_labels_that_are_one_off_have_a_score_of_0() -> None:
    wrong = said(*((label, box, 0.9) for label, box in SCENE[:2]), offset=0)
    judgement = judged(task(first_label=1), (painted(*SCENE[:2]), wrong))
    assert judgement.scores["mAP"] == 0


def test_scores_are_those_of_a_hand() -> None:
    """Of two red objects one is found, behind a mistake: at the 51 recalls up to a half, precision 1/2, else 0.

    The green one's box overlaps by 30 × 36 of 30 × 40 pixels: 0.9, as found at overlaps up to 0.85 and 0.9.
    """
    scene = painted((0, (0, 0, 20, 20)), (0, (60, 40, 80, 60)), SCENE[1])
    left, top, right, bottom = SCENE[1][1]
    found = said((0, (30, 0, 50, 20), 0.9), (0, (0, 0, 20, 20), 0.8), (1, (left, top, right, bottom - 4.5), 0.7))
    judgement = judged(task(), (scene, found))
    red, green, blue = judgement.per_class
    assert (red.occurrences, green.occurrences, blue.occurrences) == (2, 1, 0)
    assert red.score == pytest.approx(51 / 101 / 2)
    # 35.5 / 40 = 0.8875: eight of the ten overlaps from 0.5 to 0.95.
    assert green.score == pytest.approx(0.8)
    assert math.isnan(blue.score)
    assert judgement.scores["mAP"] == pytest.approx((51 / 101 / 2 + 0.8) / 2)
    assert judgement.scores["mAP@0.5"] == pytest.approx((51 / 101 / 2 + 1) / 2)


def random_pairs(count: int, masks: bool = False) -> list[tuple[tuple[Image.Image, Boxes], dict[str, Tensor]]]:
    """Predictions that are more or less right, of images with zero to three objects."""
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
        found = said(*((label, tuple(map(float, box)), float(draw.random())) for label, box in moved))
        if masks:
            found["masks"] = torch.zeros(len(moved), 1, 60, 90)
            for mask, (_, (left, top, right, bottom)) in zip(found["masks"], moved, strict=True):
                mask[0, int(top) : int(bottom), int(left) : int(right)] = 0.8
        pairs.append((painted(*scene, masks=masks), found))
    return pairs


def test_scores_are_those_of_torchmetrics() -> None:
    pairs = random_pairs(12)
    judgement = judged(task(), *pairs)
    metric = MeanAveragePrecision(class_metrics=True, backend="faster_coco_eval")
    for (_, boxes), found in pairs:
        target = {"boxes": torch.tensor(boxes.boxes), "labels": torch.tensor(boxes.labels)}
        metric.update([{**found, "labels": found["labels"] - 1}], [target])
    result = metric.compute()
    assert list(judgement.scores.values()) == pytest.approx(
        [float(result[name]) for name in ("map", "map_50", "map_75")]
    )
    assert [row.score for row in judgement.per_class] == pytest.approx(result["map_per_class"].tolist())
    assert 0 < judgement.scores["mAP"] < 1
    assert [row.occurrences for row in judgement.per_class] == [9, 6, 3]


def test_masks_are_judged_as_the_boxes_that_they_fill() -> None:
    pairs = random_pairs(12, masks=True)
    judgement = judged(task(masks=True), *pairs)
    assert list(judgement.scores) == ["mAP", "mAP@0.5", "mAP@0.75", "mask mAP"]
    assert judgement.scores["mask mAP"] == judgement.scores["mAP"]
    assert judgement.scores["mAP"] == judged(task(), *random_pairs(12)).scores["mAP"]


def test_a_mask_that_is_unsure_everywhere_is_empty() -> None:
    scene = painted(SCENE[0], masks=True)
    masks = torch.full((1, 1, 60, 90), 0.4)
    judgement = judged(task(masks=True), (scene, said((0, SCENE[0][1], 0.9), masks=masks)))
    assert judgement.scores == {"mAP": 1, "mAP@0.5": 1, "mAP@0.75": 1, "mask mAP": 0}


def test_ignored_objects_count_neither_for_nor_against() -> None:
    image, found = painted(*SCENE)
    ignored = image, found._replace(ignored=np.array([False, True, False]))
    right = [(label, box, 0.9) for label, box in SCENE]
    for predicted in ([right[0], right[2]], right):
        judgement = judged(task(), (ignored, said(*predicted)))
        assert judgement.scores["mAP"] == 1
        assert judgement.per_class[0] == ("red", 1, 1.0)
        assert judgement.per_class[1].occurrences == 0
        assert math.isnan(judgement.per_class[1].score)
    # The same image, nothing ignored: what is missing counts against.
    assert judged(task(), ((image, found), said(right[0], right[2]))).scores["mAP"] == pytest.approx(2 / 3)


def test_without_an_image_or_an_object_there_is_no_score() -> None:
    for pairs in ([], [(painted(), said())], [(painted(), said((0, (1, 1, 9, 9), 0.5)))]):
        judgement = judged(task(), *pairs)
        assert all(math.isnan(score) for score in judgement.scores.values())
        assert [row.occurrences for row in judgement.per_class] == [0, 0, 0]
        assert all(math.isnan(row.score) for row in judgement.per_class)


def test_one_class_is_counted_as_several_are() -> None:
    judgement = judged(task(classes=("red",)), (painted(SCENE[0]), said((0, SCENE[0][1], 0.9))))
    assert judgement.per_class == (ClassScore("red", 1, 1.0),)


def test_more_boxes_than_are_counted_are_no_reason_to_warn() -> None:
    many = [(0, (1.0, 1.0, 9.0, 9.0), 0.1)] * 150
    judgement = judged(task(), (painted(SCENE[0]), said((0, SCENE[0][1], 0.9), *many)))
    assert judgement.scores["mAP"] == 1


def test_half_precision_is_counted() -> None:
    found = said(*((label, box, 0.9) for label, box in SCENE))
    found = {name: values.bfloat16() if values.is_floating_point() else values for name, values in found.items()}
    assert judged(task(), (painted(*SCENE), found)).scores["mAP"] == 1


def test_what_was_counted_can_be_asked_for_again_and_added_to() -> None:
    (sample, found), (other, missed) = (painted(SCENE[0]), said((0, SCENE[0][1], 0.9))), (painted(SCENE[0]), said())
    measuring = task().measuring(torch.device("cpu"))
    for (image, boxes), prediction, expected in ((sample, found, 1), (other, missed, 51 / 101)):
        measuring.update([prediction], [task().judging_transform()(image, boxes)[1]])
        assert [measuring.compute().scores["mAP"] for _ in range(2)] == pytest.approx([expected] * 2)


SHARES = {False: (5, 2), True: (0, 4)}
"""Whether with masks → images that each of two processes judges."""


def judge_a_share(rank: int, folder: Path) -> None:
    """One of two processes: judges its images, and writes what it is told of all."""
    warnings.simplefilter("error")
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'met'}", rank=rank, world_size=2)
    for masks, (first, second) in SHARES.items():
        pairs = random_pairs(first + second, masks)
        own = pairs[first:] if rank else pairs[:first]
        torch.save(judged(task(masks=masks), *own), folder / f"{masks} {rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_count_every_image_once(tmp_path: Path) -> None:
    multiprocessing.spawn(judge_a_share, (tmp_path,), nprocs=2)
    for masks, shares in SHARES.items():
        first, second = (torch.load(tmp_path / f"{masks} {rank}.pt", weights_only=False) for rank in range(2))
        alone = judged(task(masks=masks), *random_pairs(sum(shares), masks))
        assert first == second == alone
        assert 0 < alone.scores["mAP"] < 1


# The size that a user gives.


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
def test_a_size_becomes_the_options_of_the_head(registry: Registry, head: str, options: dict[str, int]) -> None:
    assert sized(registry.head(head), 320) == options
    registry.spec("mobilenet_v3_small", head=head, **options)


def test_a_size_of_torchvisions_default_is_torchvisions_default(registry: Registry) -> None:
    assert sized(registry.head("retinanet"), 800) == {"min_size": 800, "max_size": 1333}


def test_a_head_that_resizes_nothing_takes_no_size() -> None:
    head = HeadSpec("finder", reads=("C5",), factory="somewhere:finder", task="detection", options={"min_size": 3})
    with pytest.raises(OptionError) as raised:
        sized(head, 320)
    assert str(raised.value) == (
        "head 'finder' takes no size of 320: it has no option 'size', nor 'min_size' and 'max_size'; leave the size out"
    )
