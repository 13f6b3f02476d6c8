"""Do the heads learn? `make bench-learning`.

SSDLite, RetinaNet and LR-ASPP on torchvision's official ImageNet weights of MobileNetV2 are trained for a few minutes
on shapes pasted on photographs (`benchmarks/shapes.py`), and judged on 100 images of photographs they never saw: mAP at
an overlap of 0.5 of the detectors, mean IoU over the four classes, background included, of the segmenter.
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
LEARNED_FROM, JUDGED = 800, 100
PICTURE = Path("docs/images/learning.png")
COLOURS = ["black", "red", "lime", "deepskyblue"]
DRAWN, DRAWN_ABOVE = 4, 0.5


@dataclass(frozen=True)
class Recipe:
    """How a head is built and trained: its options, steps, images in each, and the highest learning rate of AdamW."""

    head: str
    steps: int
    batch: int
    rate: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def detects(self) -> bool:
        """Whether the head finds boxes, and does not label pixels."""
        return registry.default.head(self.head).task == "detection"

    def build(self) -> nn.Module:
        """Return the model on pretrained weights."""
        return registry.build("mobilenet_v2", head=self.head, num_classes=len(CLASSES), pretrained=True, **self.options)


# Two levels and their anchors reach all shapes. 256 channels, because torchvision draws the layers of RetinaNet's head
# so small that narrower ones hardly learn.
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


def normalised(model: nn.Module, batch: Sequence[Example]) -> Tensor:
    """Return images (N, 3, H, W) as the model's weights were trained."""
    prepared = model.description.preprocessing
    mean, std = (torch.tensor(values)[:, None, None] for values in (prepared.mean, prepared.std))  # type: ignore[union-attr]
    return (torch.stack([example.image for example in batch]) - mean) / std


def loss_of(recipe: Recipe, model: nn.Module, batch: Sequence[Example]) -> Tensor:
    """Return the loss of a batch, of a model in training."""
    if recipe.detects:
        losses = model([example.image for example in batch], [example.target for example in batch])
        return torch.stack(list(losses.values())).sum()
    logits = model(normalised(model, batch))["out"]
    return F.cross_entropy(logits, torch.stack([example.mask for example in batch]))


def train(recipe: Recipe, model: nn.Module, learned_from: Sequence[Example]) -> Iterator[float]:
    """Train in place with AdamW and one cycle of the learning rate, and yield the loss of each step."""
    generator = torch.Generator().manual_seed(0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, recipe.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.steps)
    model.train()
    order: list[int] = []
    for _ in range(recipe.steps):
        if len(order) < recipe.batch:
            order = torch.randperm(len(learned_from), generator=generator).tolist()
        chosen, order = order[: recipe.batch], order[recipe.batch :]
        optimizer.zero_grad()
        loss = loss_of(recipe, model, [learned_from[index] for index in chosen])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()


@torch.inference_mode()
def scores(recipe: Recipe, model: nn.Module, judged: Sequence[Example]) -> dict[str, float]:
    """Return mAP at an overlap of 0.5 and COCO's mAP, or the mean IoU over all classes."""
    model.eval()
    metric: Any
    if not recipe.detects:
        metric = MulticlassJaccardIndex(len(CLASSES))
        metric.update(model(normalised(model, judged))["out"].argmax(1), torch.stack([e.mask for e in judged]))
        return {"mean IoU": float(metric.compute())}
    metric = MeanAveragePrecision(backend="faster_coco_eval")
    # SSDLite returns up to 300 boxes; COCO's measure takes the best 100.
    metric.warn_on_many_detections = False
    metric.update(model([example.image for example in judged]), [example.target for example in judged])
    found = metric.compute()
    return {"mAP@0.5": float(found["map_50"]), "mAP": float(found["map"])}


@torch.inference_mode()
def drawn(recipe: Recipe, model: nn.Module, judged: Sequence[Example]) -> list[Tensor]:
    """Return images (3, H, W) of bytes with what the model finds in them."""
    pictures = [(F.interpolate(e.image[None], scale_factor=2.0)[0] * 255).byte() for e in judged]
    if not recipe.detects:
        classes = model(normalised(model, judged))["out"].argmax(1)
        enlarged = F.interpolate(classes[:, None].float(), scale_factor=2.0)[:, 0]
        masks = [torch.stack([found == label for label in range(1, len(CLASSES))]) for found in enlarged]
        return [
            draw_segmentation_masks(picture, mask, alpha=0.6, colors=COLOURS[1:])
            for picture, mask in zip(pictures, masks, strict=True)
        ]
    pages = []
    for picture, found in zip(pictures, model([example.image for example in judged]), strict=True):
        sure = found["scores"] > DRAWN_ABOVE
        labels = found["labels"][sure].tolist()
        texts = [
            f"{CLASSES[label]} {value:.2f}" for label, value in zip(labels, found["scores"][sure].tolist(), strict=True)
        ]
        colours = [COLOURS[label] for label in labels]
        boxes = found["boxes"][sure] * 2
        pages.append(draw_bounding_boxes(picture, boxes, texts, colors=colours, width=2) if labels else picture)
    return pages


def learned(recipe: Recipe, report: Callable[[str], None]) -> list[Tensor]:
    """Train and judge one head, and return pictures of what it finds."""
    learned_from = examples(LEARNED_FROM, SIZE, 0, TRAINING)
    judged = examples(JUDGED, SIZE, 1, HELD_OUT)
    torch.manual_seed(0)
    model = recipe.build()
    before, begin = scores(recipe, model, judged), time.perf_counter()
    losses = list(train(recipe, model, learned_from))
    spent, tenth = time.perf_counter() - begin, len(losses) // 10
    fell = ", ".join(f"{sum(part) / tenth:.2f}" for part in zip(*[iter(losses)] * tenth, strict=True))
    after = scores(recipe, model, judged)
    measure = next(iter(after))
    report(
        f"{recipe.head}: {measure} {before[measure]:.3f} before, {after[measure]:.3f} after {recipe.steps} steps of "
        f"{recipe.batch} images in {spent:.0f} s\n  loss, by tenths of the training: {fell}"
    )
    return drawn(recipe, model, judged[:DRAWN])


def main() -> None:
    """Train all three, and draw what they find in the same images."""
    logging.getLogger("featuretap").setLevel("ERROR")
    pictures = [
        picture for recipe in RECIPES for picture in learned(recipe, lambda text: print(f"\n{text}", flush=True))
    ]
    page: Image.Image = to_pil_image(make_grid(pictures, nrow=DRAWN, padding=6, pad_value=255))
    page.quantize(128).save(PICTURE, optimize=True)
    print(f"\nwhat they find: {PICTURE}, a row each, boxes with a score over {DRAWN_ABOVE}")


if __name__ == "__main__":
    main()
