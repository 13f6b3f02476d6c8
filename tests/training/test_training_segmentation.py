"""The segmentation task: training samples, the loss and the scores."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from support.segmentation_samples import (
    CLASSES,
    COLOURS,
    SIZE,
    WHOLE,
    evaluate,
    logits_of,
    random_pairs,
    scene,
    segmentation_task,
)
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's conventional alias
from torchmetrics.classification import MulticlassJaccardIndex

from benchmarks.shapes import TRAINING, examples
from featuretap.registry import Registry
from featuretap.registry.errors import TrainingError
from featuretap.specs.preprocessing import Preprocessing
from featuretap.workflows.datasets.data_set import IGNORED
from featuretap.workflows.training.loop import compute_metrics


def nearest_class(image: Tensor, prepared: Preprocessing = WHOLE) -> Tensor:
    """Return the class (H, W) whose color is closest to each pixel of a normalized image."""
    shown = image * torch.tensor(prepared.std)[:, None, None] + torch.tensor(prepared.mean)[:, None, None]
    return (shown[None] - torch.tensor(COLOURS)[:, :, None, None] / 255).abs().sum(1).argmin(0)


def agreement(image: Tensor, mask: Tensor) -> float:
    known = mask != IGNORED
    return float((nearest_class(image) == mask)[known].float().mean())


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_masks_stay_aligned_with_their_images(flip: float) -> None:
    transform = segmentation_task(flip=flip, crop_scale=0.25).training_transform()
    shares, filled = [], 0
    for _ in range(60):
        image, mask = transform(*scene())
        assert image.shape == (3, SIZE, SIZE)
        assert mask.shape == (SIZE, SIZE)
        assert mask.dtype == torch.uint8
        assert set(mask.unique().tolist()) <= {0, 1, 2, IGNORED}
        # Resizing blends colors at the edges.
        assert agreement(image, mask) > 0.85
        beyond = mask == IGNORED
        filled += bool(beyond.any())
        assert image.permute(1, 2, 0)[beyond].abs().max() < 0.01 if beyond.any() else True
        shares.append(float((mask == 2).float().mean()))
    assert 5 < filled < 55
    assert len(set(shares)) > 20


def test_mirroring_mirrors_both() -> None:
    image, mask = segmentation_task(flip=1.0, crop_scale=1.0).training_transform()(*scene())
    still, unturned = segmentation_task().training_transform()(*scene())
    assert torch.equal(mask, unturned.flip(-1))
    assert torch.equal(image, still.flip(-1))
    assert not torch.equal(mask, unturned)


def test_images_are_enlarged_and_reduced_by_the_root_of_the_scale() -> None:
    """Transform a grid of dots, which are 8 pixels apart when the image has the size of the crop."""
    dots = np.zeros((SIZE, SIZE), np.uint8)
    dots[4::8, 4::8] = 1
    large = dots.repeat(8, 0).repeat(8, 1)
    picture = Image.fromarray(COLOURS[large])
    transform = segmentation_task(flip=0.0, crop_scale=0.25).training_transform()
    areas = []
    for _ in range(200):
        _, mask = transform(picture, large)
        areas.append(int((mask != IGNORED).sum()))
        # At half the size, the image fills a quarter of the crop.
        assert areas[-1] >= SIZE**2 / 4
    assert min(areas) < SIZE**2 / 3
    dense = [int((transform(picture, large)[1] == 1).sum()) for _ in range(100)]
    # At twice the size, a dot covers four pixels.
    assert max(dense) > 2.5 * (dots == 1).sum() / 4


def test_without_augmentation_training_and_evaluation_images_are_alike() -> None:
    (learned, small), (judged, whole) = (
        transform(*scene())
        for transform in (segmentation_task().training_transform(), segmentation_task().evaluation_transform())
    )
    assert learned.shape == judged.shape == (3, 40, 60)
    # Pillow and PyTorch resize alike, except for rounding to bytes.
    assert (learned - judged).abs().max() < 2 / 255 / 0.25
    assert small.shape == (40, 60)
    assert torch.equal(whole, torch.tensor(scene()[1]))
    assert agreement(learned, small) > 0.9


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_a_policy_changes_colours_and_nothing_else(policy: Any) -> None:
    transform = segmentation_task(flip=0.0, crop_scale=1.0, augment=policy).training_transform()
    still, unturned = segmentation_task().training_transform()(*scene())
    changed = 0
    for _ in range(20):
        image, mask = transform(*scene())
        assert torch.equal(mask, unturned)
        changed += not torch.equal(image, still)
    assert changed > 10


def test_evaluation_images_equal_those_of_the_models_transforms(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small", head="lraspp", num_classes=3, width=0.25)
    judging = segmentation_task(preprocessing=model.description.preprocessing).evaluation_transform()
    image, _ = scene()
    assert torch.equal(judging(*scene())[0], registry.transforms(model)(image))


def test_images_of_any_mode_are_converted_to_the_models_channels() -> None:
    image, mask = scene()
    grey = segmentation_task(preprocessing=WHOLE.for_channels(1), flip=0.5, crop_scale=0.35, augment="rand")
    assert grey.training_transform()(image.convert("RGBA"), mask)[0].shape == (1, SIZE, SIZE)
    assert grey.evaluation_transform()(image, mask)[0].shape == (1, 40, 60)
    assert segmentation_task().training_transform()(image.convert("L"), mask)[0].shape == (3, 40, 60)


def test_transforms_can_be_pickled() -> None:
    varied = segmentation_task(flip=0.5, crop_scale=0.35, augment="rand")
    for transform in (varied.training_transform(), varied.evaluation_transform()):
        image, mask = pickle.loads(pickle.dumps(transform))(*scene())
        assert type(image) is type(mask) is Tensor


def test_random_crops_need_a_size() -> None:
    with pytest.raises(TrainingError) as raised:
        segmentation_task(preprocessing=Preprocessing(None, None)).training_transform()
    assert str(raised.value) == (
        "segmentation is trained at a fixed image size, and the preprocessing does not define one; set size"
    )


# Loss


class Answering(nn.Module):
    """A module that returns fixed outputs and records its inputs."""

    def __init__(self, **answers: Tensor) -> None:
        super().__init__()
        self.answers = answers
        self.asked: list[Tensor] = []

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.asked.append(images)
        return self.answers


def batch() -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return two images with masks (one has an ignored pixel), and logits for both."""
    masks = [torch.tensor([[0, 1], [2, IGNORED]], dtype=torch.uint8), torch.tensor([[1, 1], [0, 2]], dtype=torch.uint8)]
    return [torch.rand(3, 2, 2), torch.rand(3, 2, 2)], masks, torch.randn(2, 3, 2, 2)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_the_mean_over_labelled_pixels_plus_half_the_auxiliary_loss(smoothing: float) -> None:
    images, masks, logits = batch()
    chosen = segmentation_task(label_smoothing=smoothing)

    def by_hand(said: Tensor) -> float:
        losses = []
        for values, mask in zip(said.log_softmax(1), masks, strict=True):
            for row in range(2):
                for column in range(2):
                    if (label := int(mask[row, column])) != IGNORED:
                        right, uniform = values[label, row, column], values[:, row, column].mean()
                        losses.append(-(1 - smoothing) * right - smoothing * uniform)
        assert len(losses) == 7
        return float(torch.stack(losses).mean())

    other = torch.randn(2, 3, 2, 2)
    alone = chosen.loss(Answering(out=logits), images, masks)
    both = chosen.loss(Answering(out=logits, aux=other), images, masks)
    assert float(alone) == pytest.approx(by_hand(logits))
    assert float(both) == pytest.approx(by_hand(logits) + 0.5 * by_hand(other))


def test_the_loss_of_a_batch_without_labelled_pixels_is_0() -> None:
    images, masks, logits = batch()
    logits.requires_grad_()
    nothing = [torch.full_like(mask, IGNORED) for mask in masks]
    loss = segmentation_task().loss(Answering(out=logits, aux=logits), images, nothing)
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert segmentation_task().evaluation_loss(list(logits), nothing) == (0, 0)


def test_images_of_several_sizes_are_padded_to_one_batch() -> None:
    images = [torch.ones(3, 4, 6), torch.ones(3, 5, 2)]
    masks = [torch.ones(4, 6, dtype=torch.uint8), torch.ones(5, 2, dtype=torch.uint8)]
    logits = torch.randn(2, 3, 5, 6)
    model = Answering(out=logits)
    loss = segmentation_task().loss(model, images, masks)
    (asked,) = model.asked
    assert asked.shape == (2, 3, 5, 6)
    assert asked[0].sum() == 3 * 24
    assert asked[1, :, :, :2].sum() == 3 * 10 == asked[1].sum()
    counted = torch.cat([logits[0, :, :4, :].flatten(1), logits[1, :, :, :2].flatten(1)], 1)
    assert float(loss) == pytest.approx(float(F.cross_entropy(counted.T, torch.ones(34, dtype=torch.int64))))


def test_the_evaluation_loss_is_computed_at_the_size_of_the_logits_without_label_smoothing() -> None:
    logits = [torch.randn(3, 4, 4), torch.randn(3, 2, 3)]
    masks = [torch.randint(3, (4, 4), dtype=torch.uint8), torch.randint(3, (2, 3), dtype=torch.uint8)]
    masks[0][0] = IGNORED
    flat = torch.cat([values.flatten(1) for values in logits], 1).T
    expected = F.cross_entropy(flat, torch.cat([mask.flatten() for mask in masks]).long(), ignore_index=IGNORED)
    large = [masks[0].repeat_interleave(5, 0).repeat_interleave(3, 1), masks[1]]
    found, _ = segmentation_task(label_smoothing=0.4).evaluation_loss(logits, large)
    assert float(found) == pytest.approx(float(expected))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_evaluation_loss_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"out": images}

    generator = torch.Generator().manual_seed(0)
    sizes = [(4, 4), (2, 3), (6, 1), (1, 1), (5, 5)]
    images = [torch.randn(3, *size, generator=generator) for size in sizes]
    masks = [torch.randint(3, size, generator=generator, dtype=torch.uint8) for size in sizes]
    masks[0][:3] = IGNORED
    batches = [
        (images[start : start + batch_size], masks[start : start + batch_size]) for start in range(0, 5, batch_size)
    ]
    metrics = compute_metrics(Accelerator(cpu=True), segmentation_task(), Constant(), batches, lambda images: None)
    flat = torch.cat([values.flatten(1) for values in images], 1).T
    expected = F.cross_entropy(flat, torch.cat([mask.flatten() for mask in masks]).long(), ignore_index=IGNORED)
    assert metrics.scores["loss"] == pytest.approx(float(expected), rel=1e-6)


@torch.no_grad()
def test_images_of_one_size_are_predicted_together_and_results_keep_their_order(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small", head="lraspp", num_classes=3, width=0.25).eval()
    images = [torch.rand(3, 40, 50), torch.rand(3, 48, 40), torch.rand(3, 40, 50)]
    found = segmentation_task().predict(model, images)
    for image, logits in zip(images, found, strict=True):
        assert torch.allclose(logits, model(image[None])["out"][0], atol=1e-5)
    asked = Answering(out=torch.zeros(1, 3, 2, 2))
    segmentation_task().predict(asked, images[:1])
    assert [tuple(images.shape) for images in asked.asked] == [(1, 3, 40, 50)]


@pytest.mark.parametrize(("head", "options"), [("lraspp", {}), ("deeplab_v3", {"auxiliary": True})])
def test_a_segmenter_can_overfit_a_few_images(registry: Registry, head: str, options: Any) -> None:
    chosen = segmentation_task(classes=("background", "circle", "square", "triangle"))
    transform = chosen.training_transform()
    samples = [
        transform(Image.fromarray((example.image.permute(1, 2, 0) * 255).byte().numpy()), example.mask.byte().numpy())
        for example in examples(4, 40, 0, TRAINING[:2])
    ]
    model = registry.build("mobilenet_v3_small", head=head, num_classes=4, width=0.5, **options).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(15):
        loss = chosen.loss(model, *chosen.collate(samples))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


# Scores


def test_perfect_predictions_have_a_score_of_1() -> None:
    _, mask = scene()
    metrics = evaluate((logits_of(mask), mask))
    assert metrics.scores == {"mIoU": 1, "pixel accuracy": 1}
    assert next(iter(metrics.scores)) == "mIoU"
    assert [tuple(row) for row in metrics.per_class] == [
        (name, int((mask == label).sum()), 1.0) for label, name in enumerate(CLASSES)
    ]


def test_scores_equal_a_calculation_by_hand() -> None:
    truth = [[0, 0, 1, 1], [0, 0, 1, IGNORED]]
    found = [[0, 1, 1, 1], [1, 0, 1, 1]]
    metrics = evaluate((logits_of(found), truth))
    background, red, blue = metrics.per_class
    assert (background.occurrences, red.occurrences, blue.occurrences) == (4, 3, 0)
    assert background.score == pytest.approx(2 / 4)
    assert red.score == pytest.approx(3 / 5)
    assert math.isnan(blue.score)
    assert metrics.scores == pytest.approx({"mIoU": (3 / 5 + 2 / 4) / 2, "pixel accuracy": 5 / 7})
    assert metrics.confusion.tolist() == [[2, 2, 0], [0, 3, 0], [0, 0, 0]]
    assert metrics.class_columns["accuracy"] == pytest.approx((2 / 4, 3 / 3, math.nan), nan_ok=True)


def test_false_positives_of_an_absent_class_lower_the_mean() -> None:
    metrics = evaluate((logits_of([[0, 2]]), [[0, 0]]))
    assert metrics.per_class[2].score == 0
    assert metrics.scores["mIoU"] == pytest.approx((1 / 2 + 0) / 2)


def test_scores_equal_those_of_torchmetrics() -> None:
    pairs = random_pairs(5)
    metrics = evaluate(*pairs)
    metric = MulticlassJaccardIndex(3, average="none", ignore_index=IGNORED)
    for logits, mask in pairs:
        metric.update(logits[None], torch.tensor(mask)[None])
    assert [row.score for row in metrics.per_class] == pytest.approx(metric.compute().tolist())
    assert metrics.scores["mIoU"] == pytest.approx(float(metric.compute().mean()))


def test_predictions_are_scored_at_the_size_of_the_mask() -> None:
    small = [[0, 1], [2, 0]]
    large = np.array(small).repeat(10, 0).repeat(10, 1)
    metrics = evaluate((logits_of(small), large))
    assert sum(row.occurrences for row in metrics.per_class) == 400
    assert 0.85 < metrics.scores["pixel accuracy"] < 1


def test_scores_are_nan_without_an_image_or_a_labelled_pixel() -> None:
    for pairs in ([], [(logits_of([[0, 1]]), [[IGNORED, IGNORED]])]):
        metrics = evaluate(*pairs)
        assert all(math.isnan(score) for score in metrics.scores.values())
        assert [row.occurrences for row in metrics.per_class] == [0, 0, 0]


def test_predictions_in_bfloat16_are_scored() -> None:
    assert evaluate((logits_of([[0, 1]]).bfloat16(), [[0, 1]])).scores["mIoU"] == 1
    bfloats, masks = [logits_of([[0, 1]]).bfloat16()], [torch.tensor([[0, 1]], dtype=torch.uint8)]
    assert segmentation_task().evaluation_loss(bfloats, masks)[0].dtype == torch.float32
