"""Forward passes: eager, truncated, in runtimes, and by image size."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
from torch import Tensor, nn

from benchmarks.networks import FEATURES, NAME
from benchmarks.results import limit, milliseconds, section, table, timed
from featuretap import registry
from featuretap.runtimes.onnx_runtime import onnx_session
from featuretap.support.timing import PAUSE, Timing

__all__ = ["eager", "overhead", "runtimes", "sizes", "truncated"]

BATCHES = {1: 61, 8: 21}
"""Batch size → number of rounds."""

RUNTIMES = ("onnxruntime", "openvino", "inductor", "aot")
SIZES = (128, 224, 320, 512, 768, 1024)

Models = Mapping[str, Callable[[Tensor], object]]


def eager() -> Iterator[str]:
    """Yield tables of the three libraries in eager PyTorch, with and without fused layers."""
    models: dict[str, nn.Module] = {name: build().eval() for name, build in FEATURES.items()}
    models["featuretap, fused"] = registry.fuse(models["featuretap"])
    last = {
        f"{name}, channels_last": build().eval().to(memory_format=torch.channels_last)
        for name, build in FEATURES.items()
    }
    last["featuretap, fused, channels_last"] = models["featuretap, fused"]
    for batch, rounds in BATCHES.items():
        images = torch.randn(batch, 3, 224, 224)
        calls = _calls(models, images) | _calls(last, images.to(memory_format=torch.channels_last))
        with torch.inference_mode():
            timings = timed(calls, rounds, warm_up=5, pause=PAUSE)
        yield section(
            f"Eager features, {batch} × 3 × 224 × 224",
            f"C1 to C5 of {NAME}, evaluation mode, `torch.inference_mode`; images and maps are contiguous unless "
            f"marked channels_last. {rounds} rounds.",
            milliseconds(timings, _limit(timings, batch)),
        )


def truncated() -> Iterator[str]:
    """Yield a table of backbones that return only C1 to C3."""
    levels = ("C1", "C2", "C3")
    models = {
        "timm, out_indices=(0, 1, 2)": timm.create_model(
            "mobilenetv3_large_100", features_only=True, out_indices=(0, 1, 2)
        ).eval(),
        "featuretap, taps=(C1, C2, C3)": registry.build(NAME, features_only=True, taps=levels).eval(),
    }
    models["featuretap, fused"] = registry.fuse(models["featuretap, taps=(C1, C2, C3)"])
    images = torch.randn(1, 3, 224, 224)
    compiled = registry.compile(models["featuretap, taps=(C1, C2, C3)"])
    calls = _calls({**models, "featuretap, onnxruntime": compiled}, images)
    with torch.inference_mode():
        timings = timed(calls, 61, warm_up=5, pause=PAUSE)
    counts = {name: f"{sum(p.numel() for p in model.parameters()):,}" for name, model in models.items()}
    yield section(
        "Truncated features, C1 to C3, 1 × 3 × 224 × 224",
        "featuretap does not build layers after the last requested tap. 61 rounds.",
        milliseconds(timings, {"parameters": counts}),
    )


def runtimes() -> Iterator[str]:
    """Yield tables of all runtimes, and timm with torch.compile and static shapes, its fastest setting."""
    built = {name: build().eval() for name, build in FEATURES.items()}
    compiled = {f"featuretap, {name}": registry.compile(built["featuretap"], name) for name in RUNTIMES}
    for batch, rounds in BATCHES.items():
        torch._dynamo.reset()
        images = torch.randn(batch, 3, 224, 224)
        models: Models = {
            "timm": built["timm"],
            "timm, torch.compile": torch.compile(built["timm"], dynamic=False),
            "torchvision": built["torchvision"],
            "featuretap": built["featuretap"],
            **compiled,
        }
        with torch.inference_mode():
            timings = timed(_calls(models, images), rounds, warm_up=5, pause=PAUSE)
        yield section(
            f"Runtimes, {batch} × 3 × 224 × 224",
            f"C1 to C5 of {NAME} as PyTorch tensors, float32. {rounds} rounds.",
            milliseconds(timings, _limit(timings, batch)),
        )


def overhead() -> Iterator[str]:
    """Yield tables of `registry.compile` compared with the runtime that it calls."""
    with TemporaryDirectory() as folder:
        path = registry.export(FEATURES["featuretap"]().eval(), Path(folder) / "model.onnx")
        compiled, session = registry.compile(path), onnx_session(str(path), torch.get_num_threads())
    for batch, rounds in BATCHES.items():
        images = torch.randn(batch, 3, 224, 224)
        array = images.numpy()
        calls = {
            "ONNX Runtime, `session.run`": lambda array=array: session.run(None, {"image": array}),
            "`registry.compile`": lambda images=images: compiled(images),
        }
        yield section(
            f"Overhead of `registry.compile`, {batch} × 3 × 224 × 224",
            "The same file and the same session options, with NumPy arrays (`session.run`) or a dict of tensors "
            f"(`registry.compile`). {2 * rounds} rounds.",
            milliseconds(timed(calls, 2 * rounds, warm_up=5, pause=PAUSE)),
        )


def sizes() -> Iterator[str]:
    """Yield a table of latency by image size."""
    built = {name: build().eval() for name, build in FEATURES.items()}
    models: Models = {**built, "featuretap, onnxruntime": registry.compile(built["featuretap"])}
    spec = registry.spec(NAME, features_only=True)
    rows = []
    for size in SIZES:
        images = torch.randn(1, 3, size, size)
        with torch.inference_mode():
            timings = timed(_calls(models, images), rounds=11, warm_up=2, pause=PAUSE)
        macs = spec.macs(size, size)
        cells = [f"{timing.median * 1000:.1f} ({timing.ratio:.2f})" for timing in timings.values()]
        rows.append([str(size), f"{macs / 1e6:.0f}", f"{macs / limit() * 1000:.1f}", *cells])
    yield section(
        "Latency by image size, one image",
        "Median milliseconds and, in parentheses, the ratio to timm, for square images of this side in pixels. The "
        "limit is the time of these multiply-adds in matrix multiplication. 11 rounds.",
        table(["side", "M multiply-adds", "limit ms", *models], rows),
    )


def _calls(models: Models, images: Tensor) -> dict[str, Callable[[], object]]:
    return {name: partial(model, images) for name, model in models.items()}


def _limit(timings: Mapping[str, Timing], batch: int) -> dict[str, dict[str, str]]:
    """Return the column "of the limit": the minimum time for the multiply-adds, divided by the measured time."""
    least = registry.spec(NAME, features_only=True).macs(224, 224) * batch / limit()
    return {"of the limit": {name: f"{least / timing.median:.0%}" for name, timing in timings.items()}}
