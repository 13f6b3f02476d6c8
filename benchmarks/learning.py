"""Short trainings of heads on synthetic data: `make bench-learning`.

SSDLite, RetinaNet and LR-ASPP start from torchvision's ImageNet weights of MobileNetV2 and are trained for a few
minutes on shapes pasted on photographs (`benchmarks/shapes.py`). They are evaluated on 100 images made from other
photographs: detectors by mAP at IoU 0.5, the segmenter by mean IoU over four classes, including the background.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.detection import MeanAveragePrecision
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

from benchmarks.shapes import CLASSES, HELD_OUT, TRAINING, Example, examples
from featuretap import registry

SIZE = 160
TRAINED, EVALUATED = 800, 100
PICTURE = Path("docs/images/learning.png")
COLORS = ["black", "red", "lime", "deepskyblue"]
DRAWN, DRAWN_ABOVE = 4, 0.5


@dataclass(frozen=True)
class Recipe:
    """How to build and train a head.

    Args:
        head: name of the head.
        steps: number of training steps.
        batch: images per step.
        rate: peak learning rate of AdamW.
        options: options of backbone and head.
    """

    head: str
    steps: int
    batch: int
    rate: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def detects(self) -> bool:
        """True for a detection head, False for a segmentation head."""
        return registry.default.head(self.head).task == "detection"

    def build(self) -> nn.Module:
        """Return the model, with a pretrained backbone."""
        return registry.build("mobilenet_v2", head=self.head, num_classes=len(CLASSES), pretrained=True, **self.options)


# Two levels with these anchors cover all shapes. 256 channels, because torchvision initializes the layers of
# RetinaNet's head with values so small that a narrower head hardly learns.
PYRAMID = {
    "taps": ("C4", "C5"),
    "extra_levels": None,
    "anchor_sizes": ((32, 40, 50), (64, 80, 101)),
    "fpn_norm": "batch_norm",
    "detections_per_img": 100,
}

RECIPES = (
    Recipe("ssdlite", 300, 16, 2e-3, {"size": SIZE, "freeze": "C2"}),
    Recipe("retinanet", 500, 8, 3e-4, {**PYRAMID, "min_size": SIZE, "max_size": SIZE, "freeze": "C2"}),
    Recipe("lraspp", 200, 16, 2e-3, {"freeze": "C2"}),
)


def normalize(model: nn.Module, batch: Sequence[Example]) -> Tensor:
    """Return the images (N, 3, H, W) of a batch, normalized as the model's weights require."""
    prepared = model.description.preprocessing
    mean, std = (torch.tensor(values)[:, None, None] for values in (prepared.mean, prepared.std))  # type: ignore[union-attr]
    return (torch.stack([example.image for example in batch]) - mean) / std


def loss_of(recipe: Recipe, model: nn.Module, batch: Sequence[Example]) -> Tensor:
    """Return the loss of a batch, for a model in training mode."""
    if recipe.detects:
        losses = model([example.image for example in batch], [example.target for example in batch])
        return torch.stack(list(losses.values())).sum()
    logits = model(normalize(model, batch))["out"]
    return F.cross_entropy(logits, torch.stack([example.mask for example in batch]))


def train(recipe: Recipe, model: nn.Module, training: Sequence[Example]) -> Iterator[float]:
    """Train a model in place with AdamW and a one-cycle schedule, and yield the loss of each step."""
    generator = torch.Generator().manual_seed(0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, recipe.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.steps)
    model.train()
    order: list[int] = []
    for _ in range(recipe.steps):
        if len(order) < recipe.batch:
            order = torch.randperm(len(training), generator=generator).tolist()
        chosen, order = order[: recipe.batch], order[recipe.batch :]
        optimizer.zero_grad()
        loss = loss_of(recipe, model, [training[index] for index in chosen])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()


@torch.inference_mode()
def scores(recipe: Recipe, model: nn.Module, held_out: Sequence[Example]) -> dict[str, float]:
    """Return mAP at IoU 0.5 and COCO's mAP, or the mean IoU over all classes."""
    model.eval()
    metric: Any
    if not recipe.detects:
        metric = MulticlassJaccardIndex(len(CLASSES))
        metric.update(model(normalize(model, held_out))["out"].argmax(1), torch.stack([e.mask for e in held_out]))
        return {"mean IoU": float(metric.compute())}
    metric = MeanAveragePrecision(backend="faster_coco_eval")
    # SSDLite returns up to 300 boxes, of which COCO's metric uses the best 100.
    metric.warn_on_many_detections = False
    metric.update(model([example.image for example in held_out]), [example.target for example in held_out])
    found = metric.compute()
    return {"mAP@0.5": float(found["map_50"]), "mAP": float(found["map"])}


@torch.inference_mode()
def draw_predictions(recipe: Recipe, model: nn.Module, held_out: Sequence[Example]) -> list[Tensor]:
    """Return images (3, H, W) as uint8, with the model's predictions drawn in."""
    pictures = [(F.interpolate(e.image[None], scale_factor=2.0)[0] * 255).byte() for e in held_out]
    if not recipe.detects:
        classes = model(normalize(model, held_out))["out"].argmax(1)
        enlarged = F.interpolate(classes[:, None].float(), scale_factor=2.0)[:, 0]
        masks = [torch.stack([found == label for label in range(1, len(CLASSES))]) for found in enlarged]
        return [
            draw_segmentation_masks(picture, mask, alpha=0.6, colors=COLORS[1:])
            for picture, mask in zip(pictures, masks, strict=True)
        ]
    pages = []
    for picture, found in zip(pictures, model([example.image for example in held_out]), strict=True):
        sure = found["scores"] > DRAWN_ABOVE
        labels = found["labels"][sure].tolist()
        texts = [
            f"{CLASSES[label]} {value:.2f}" for label, value in zip(labels, found["scores"][sure].tolist(), strict=True)
        ]
        colors = [COLORS[label] for label in labels]
        boxes = found["boxes"][sure] * 2
        pages.append(draw_bounding_boxes(picture, boxes, texts, colors=colors, width=2) if labels else picture)
    return pages


def train_and_evaluate(recipe: Recipe, report: Callable[[str], None]) -> list[Tensor]:
    """Train and evaluate one head, report its metric, and return pictures of its predictions."""
    training = examples(TRAINED, SIZE, 0, TRAINING)
    held_out = examples(EVALUATED, SIZE, 1, HELD_OUT)
    torch.manual_seed(0)
    model = recipe.build()
    before, begin = scores(recipe, model, held_out), time.perf_counter()
    losses = list(train(recipe, model, training))
    spent, tenth = time.perf_counter() - begin, len(losses) // 10
    curve = ", ".join(f"{sum(part) / tenth:.2f}" for part in zip(*[iter(losses)] * tenth, strict=True))
    after = scores(recipe, model, held_out)
    metric = next(iter(after))
    report(
        f"{recipe.head}: {metric} {before[metric]:.3f} before training, {after[metric]:.3f} after {recipe.steps} steps "
        f"of {recipe.batch} images in {spent:.0f} s\n  mean loss of each tenth of the training: {curve}"
    )
    return draw_predictions(recipe, model, held_out[:DRAWN])


def main() -> None:
    """Train all three heads, and draw their predictions for the same images."""
    logging.getLogger("featuretap").setLevel("ERROR")
    pictures = [
        picture
        for recipe in RECIPES
        for picture in train_and_evaluate(recipe, lambda text: print(f"\n{text}", flush=True))
    ]
    page: Image.Image = to_pil_image(make_grid(pictures, nrow=DRAWN, padding=6, pad_value=255))
    page.quantize(128).save(PICTURE, optimize=True)
    print(f"\npredictions: {PICTURE}, one row per head, boxes with a score above {DRAWN_ABOVE}")


if __name__ == "__main__":
    main()
