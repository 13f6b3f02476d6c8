"""featuretap, timm and torchvision on one GPU, in one run: `make gpu`. Without a GPU the same code runs on the CPU."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.extraction import Bench, make_photographs
from benchmarks.networks import CLASSIFIERS, NAME
from benchmarks.results import milliseconds, section, timed
from featuretap import registry
from featuretap.support.image_files import ImageFile, list_images
from featuretap.support.images import read_image
from featuretap.support.timing import Timing
from featuretap.workflows.extraction.opening import open_extractor
from featuretap.workflows.measuring.comparing import LIBRARIES, build_counterpart, this_machine

__all__ = ["gpu"]

SECONDS = 240.0
"""Time for all tables. It leaves half of the eight minutes of `make gpu` for the tests."""

NETWORKS = (NAME, "mobilenet_v2")
BATCHES = (1, 32, 256)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_ROUNDS, LEAST_ROUNDS, WARM_UP = 50, 3, 3
STEP = 64
COMPILED = torch.float16
"""The dtype for which models are also compiled, which takes half a minute per model."""


def gpu() -> Iterator[str]:
    """Yield tables of features, a training step, and extraction, with as many rounds as the time allows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    end = time.monotonic() + SECONDS
    yield section("The GPU", _device_name(device))
    yield from features(device, end - 0.4 * SECONDS)
    yield training(device, end - 0.2 * SECONDS)
    yield extraction(device, end)


def features(
    device: torch.device,
    end: float,
    *,
    networks: tuple[str, ...] = NETWORKS,
    batches: tuple[int, ...] = BATCHES,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    side: int = 224,
    compiled: torch.dtype | None = COMPILED,
) -> Iterator[str]:
    """Yield a table for each model, dtype and batch size.

    Args:
        device: device to run on.
        end: time at which to stop, on the clock of `time.monotonic`.
        networks: names of the backbones.
        batches: batch sizes.
        dtypes: data types of weights and images.
        side: image size in pixels.
        compiled: dtype for which the main model is also compiled, or None.

    Yields:
        The tables.
    """
    tables = len(networks) * len(batches) * len(dtypes)
    for name in networks:
        for dtype in dtypes:
            models = _models(name, device, dtype, compile_too=name == NAME and dtype == compiled)
            for batch in batches:
                images = torch.randn(batch, 3, side, side, device=device, dtype=dtype)
                last = images.to(memory_format=torch.channels_last)
                calls = {
                    label: _synchronized(
                        lambda model=model, given=last if "last" in label else images: model(given), device
                    )
                    for label, model in models.items()
                }
                with torch.inference_mode():
                    timings = _timed(calls, (end - time.monotonic()) / tables)
                tables -= 1
                yield _section(
                    f"Features on {device.type}, {name}, {batch} × 3 × {side} × {side}, {dtype}",
                    "C1 to C5, evaluation mode, `torch.inference_mode`, weights in the same dtype.",
                    timings,
                    batch,
                )


def training(device: torch.device, end: float, *, batch: int = STEP, side: int = 224) -> str:
    """Return a table of training steps in mixed precision and channels_last."""
    calls = {name: _synchronized(_step(build(), device, batch, side), device) for name, build in CLASSIFIERS.items()}
    return _section(
        f"A training step on {device.type}, {batch} × 3 × {side} × {side}",
        f"Classifier {NAME}: forward in float16 (bfloat16 on a CPU), cross-entropy, backward with loss scaling, SGD "
        "with momentum; channels_last.",
        _timed(calls, end - time.monotonic()),
        batch,
    )


def extraction(device: torch.device, end: float, *, images: int = 200) -> str:
    """Return a table of extracting pooled C5 from JPEG images, compared with a plain loop over timm's model."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        make_photographs(folder / "images")
        files = list_images([folder / "images"])[:images]
        bench = Bench(folder, files, open_extractor(NAME, "none", ("C5",), (224, 224), use_torch=True))
        calls = {
            "timm, a plain loop": _timm_loop(files, device),
            "featuretap extract": lambda: bench.run(len(files)),
        }
        timings = _timed(calls, end - time.monotonic(), warm_up=1)
    return _section(
        f"Extraction on {device.type}: {len(files)} JPEG images of 500×375 pixels",
        "Decoding and resizing in one process, batches of 32, float32; only featuretap also writes files.",
        timings,
        len(files),
    )


def _models(
    name: str, device: torch.device, dtype: torch.dtype, *, compile_too: bool
) -> dict[str, Callable[..., object]]:
    """Return label → model on the device."""
    built: dict[str, Any] = {library: build_counterpart(name, library).run for library in LIBRARIES}
    built["featuretap"] = registry.build(name, features_only=True).eval()
    models = {label: model.to(device, dtype) for label, model in built.items()}
    last = {
        "timm, channels_last": build_counterpart(name, "timm").run,
        "featuretap, channels_last": registry.build(name, features_only=True).eval(),
    }
    models |= {label: model.to(device, dtype, memory_format=torch.channels_last) for label, model in last.items()}  # type: ignore[attr-defined]
    if compile_too:
        models["timm, torch.compile"] = torch.compile(models["timm"], dynamic=True)
        models["featuretap, inductor"] = registry.compile(models["featuretap"], "inductor")
    return models


def _step(model: nn.Module, device: torch.device, batch: int, side: int) -> Callable[[], object]:
    model = model.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), 0.001, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type)
    images = torch.randn(batch, 3, side, side, device=device).to(memory_format=torch.channels_last)
    classes = torch.randint(1000, (batch,), device=device)
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype):
            loss = nn.functional.cross_entropy(model(images), classes)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()

    return step


def _timm_loop(files: list[ImageFile], device: torch.device) -> Callable[[], object]:
    """Return a function that averages the last map, as users of timm would write it."""
    model = timm.create_model("mobilenetv3_large_100", pretrained=False, features_only=True, out_indices=(4,))
    model = model.eval().to(device, memory_format=torch.channels_last)
    transform = timm.data.create_transform((3, 224, 224), crop_pct=1.0)

    @torch.inference_mode()
    def loop() -> list[Tensor]:
        found = []
        for start in range(0, len(files), 32):
            images = [transform(read_image(Path(file.path))) for file in files[start : start + 32]]
            (feature,) = model(torch.stack(images).to(device, memory_format=torch.channels_last))
            found.append(feature.mean((2, 3)).cpu())
        return found

    return loop


def _synchronized(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return a function that waits until the device has finished, since CUDA calls are asynchronous."""

    def run() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _timed(calls: Mapping[str, Callable[[], object]], seconds: float, warm_up: int = WARM_UP) -> dict[str, Timing]:
    """Time interleaved calls, in as many rounds (3 to 50) as fit into `seconds`."""
    # The first call compiles models and selects algorithms, so do not time it.
    for call in calls.values():
        call()
    start = time.perf_counter()
    for call in calls.values():
        call()
    rounds = int(seconds / (time.perf_counter() - start)) - warm_up
    return timed(calls, min(max(rounds, LEAST_ROUNDS), MOST_ROUNDS), warm_up)


def _section(title: str, text: str, timings: Mapping[str, Timing], images: int) -> str:
    rates = {name: f"{images / timing.median:.0f}" for name, timing in timings.items()}
    rounds = len(next(iter(timings.values())).seconds)
    return section(title, f"{text} {rounds} rounds.", milliseconds(timings, {"images/s": rates}))


def _device_name(device: torch.device) -> str:
    machine = this_machine()
    name = machine.processor
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, {name}"
    return f"{name}; {', '.join(f'{library} {version}' for library, version in machine.versions.items())}."


def check() -> None:
    """Exit with a message if PyTorch finds no NVIDIA GPU."""
    if not torch.cuda.is_available():
        sys.exit("make gpu needs an NVIDIA GPU, and PyTorch finds none; make test-gpu runs the tests on the CPU")


if __name__ == "__main__":
    check()
