"""Reduced tails initialized from pretrained weights, compared with random initialization: `make bench-tail`.

The data is scikit-learn's 1,797 handwritten digits (8×8 pixels, enlarged to 96×96). The weights are torchvision's
ImageNet weights of MobileNetV2. All layers through C4 are pretrained and frozen. The reduced tail and the classifier
are trained on 300 or 900 digits, and evaluated on 897 others after each epoch.
"""

import logging
from collections.abc import Callable, Iterable
from itertools import product
from statistics import mean, stdev

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from featuretap import registry

EPOCHS, SEEDS, BATCH, EVALUATED = 4, 5, 50, 897
TRAINED_ON = (300, 900)
RATES = (0.01, 0.05)
MEAN, STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@torch.inference_mode()
def features() -> tuple[Tensor, Tensor]:
    """Return C4 (N, 96, 6, 6) and the class of each digit."""
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float()[:, None]
    images = F.interpolate(images, (96, 96), mode="bicubic").clamp(0, 1).expand(-1, 3, -1, -1)
    images = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    body = registry.build("mobilenet_v2", features_only=True, taps=("C4",), pretrained=True).eval()
    return torch.cat([body(part)["C4"] for part in images.split(128)]).clone(), torch.from_numpy(digits.target)


def tail(pretrained: bool) -> nn.Module:
    """Return the reduced C5 and a classifier of ten classes, as a module from C4 to logits."""
    model = registry.build("mobilenet_v2", reduced_tail=True, num_classes=10, pretrained=pretrained)

    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level, self.head = model.backbone.stages.C5, model.head

        def forward(self, c4: Tensor) -> Tensor:
            # The stage contains taps, so it returns its output and the recorded maps.
            c5, _ = self.level(c4)
            return self.head({"C5": c5})

    return Tail()


def train(start: nn.Module, maps: Tensor, classes: Tensor, rate: float, count: int) -> Iterable[float]:
    """Train on `count` digits, and yield the accuracy in percent on held-out digits after each epoch."""
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    held_out, training = order[:EVALUATED], order[EVALUATED : EVALUATED + count]
    steps = len(training) // BATCH
    optimizer = torch.optim.SGD(start.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        start.train()
        for batch in training[torch.randperm(len(training))].split(BATCH)[:steps]:
            optimizer.zero_grad()
            F.cross_entropy(start(maps[batch]), classes[batch]).backward()
            optimizer.step()
            schedule.step()
        start.eval()
        with torch.inference_mode():
            yield (start(maps[held_out]).argmax(1) == classes[held_out]).float().mean().item() * 100


def main() -> None:
    """Print the accuracy by epoch for both initializations: mean ± standard deviation over the seeds."""
    logging.getLogger("featuretap").setLevel("ERROR")
    maps, classes = features()
    starts: dict[str, Callable[[], nn.Module]] = {
        "random tail": lambda: tail(pretrained=False),
        "pretrained tail": lambda: tail(pretrained=True),
    }
    for count, rate in product(TRAINED_ON, RATES):
        print(f"\n{count} digits, learning rate {rate}: accuracy in % after each of {EPOCHS} epochs, {SEEDS} seeds")
        for name, start in starts.items():
            runs = []
            for seed in range(SEEDS):
                torch.manual_seed(seed)
                runs.append(list(train(start(), maps, classes, rate, count)))
            cells = (f"{mean(epoch):5.1f} ± {stdev(epoch):3.1f}" for epoch in zip(*runs, strict=True))
            print(f"  {name:15}", "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
