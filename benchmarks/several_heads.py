"""One model with three heads, compared with its parts and with three models."""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from benchmarks.networks import NAME
from benchmarks.results import milliseconds, section, timed
from featuretap import registry
from featuretap.support.timing import PAUSE

__all__ = ["several_heads"]

ROUNDS = 41

HEADS = {"objects": "ssdlite", "road": "lraspp", "scene": "classification"}
SIZE = 320
OPTIONS = {
    # Random weights would detect the maximum of 300 objects; trained weights detect a few.
    "objects": {"num_classes": 21, "size": SIZE, "score_thresh": 0.5},
    "road": {"num_classes": 2},
    "scene": {"num_classes": 10},
}
TOGETHER, SEPARATE = "one model with three heads", "three models"


def several_heads() -> Iterator[str]:
    """Yield tables for PyTorch's eager mode and for sessions."""
    model = registry.build(NAME, head=HEADS, **OPTIONS).eval()
    image = torch.rand(3, SIZE, SIZE)
    with torch.inference_mode():
        batch = image[None]
        maps = model.backbone(batch)
        singles = {name: copy.deepcopy(registry.select_head(model, name)) for name in HEADS}
        heads = {name: _without_backbone(single, maps) for name, single in singles.items()}
        inputs: dict[str, Any] = {name: [image] if name == "objects" else batch for name in HEADS}

        def call_all(models: Mapping[str, nn.Module]) -> None:
            for name, one in models.items():
                one(inputs[name])

        parts: dict[str, Callable[[], object]] = {
            TOGETHER: partial(model, [image]),
            "the backbone": partial(model.backbone, batch),
            **{
                f"the head {HEADS[name]}, without the backbone": partial(one, inputs[name])
                for name, one in heads.items()
            },
            SEPARATE: partial(call_all, singles),
        }
        timings = timed(parts, ROUNDS, warm_up=3, pause=PAUSE)
    total = sum(timing.median for name, timing in timings.items() if name.startswith("the "))
    share = timings[TOGETHER].median / total
    yield section(
        f"Three heads on one backbone, 1 × 3 × {SIZE} × {SIZE}",
        f"{NAME} at output stride 16 with {', '.join(HEADS.values())}, in eager mode. {ROUNDS} rounds. The time of the "
        f"model is {share:.3f} times the sum of its parts.",
        milliseconds(timings),
    )
    with TemporaryDirectory() as folder:
        file = registry.save(model, Path(folder) / "several.safetensors")
        sessions = {name: registry.session(file, head=name) for name in HEADS}
        together = registry.session(file)
    pixels = batch.numpy()
    timings = timed(
        {
            TOGETHER: partial(together, pixels),
            SEPARATE: lambda: [session(pixels) for session in sessions.values()],
        },
        ROUNDS,
        warm_up=3,
        pause=PAUSE,
    )
    yield section(
        f"Three heads on one backbone as sessions, 1 × 3 × {SIZE} × {SIZE}",
        f"The same model in ONNX Runtime. {ROUNDS} rounds.",
        milliseconds(timings),
    )


def _without_backbone(single: Any, maps: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return the model of a head with a backbone that returns precomputed maps."""
    computed = copy.copy(single)
    computed._modules = {**single._modules, "backbone": _Computed({name: maps[name] for name in single.backbone.taps})}
    return computed  # type: ignore[no-any-return]


class _Computed(nn.Module):
    def __init__(self, maps: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return self.maps
