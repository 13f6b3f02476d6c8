"""Sessions and graphs written from specs: latency, complete processes, compiling and exporting."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import process_time
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.networks import FEATURES, NAME
from benchmarks.results import limit, milliseconds, section, table, timed
from featuretap import registry
from featuretap.runtimes.onnx_runtime import onnx_session
from featuretap.runtimes.openvino_runtime import open_session
from featuretap.specs.graph import IMAGE
from featuretap.support.timing import PAUSE

__all__ = ["calls", "compiling", "cost_of", "processes"]

BATCHES = {1: 61, 8: 21}
"""Batch size → number of rounds."""

ROUNDS = 5
"""Number of rounds for complete processes, and for compiling and exporting."""

HEADS: dict[str, dict[str, object]] = {
    "features": {"features_only": True},
    "classification": {},
    "fpn": {"head": "fpn"},
    "lraspp": {"head": "lraspp"},
    "deeplab_v3": {"head": "deeplab_v3"},
    "ssdlite": {"head": "ssdlite"},
}

TIMM_PREDICTS = """
import sys, timm, torch
from PIL import Image
model = timm.create_model("mobilenetv2_100", checkpoint_path=sys.argv[2]).eval()
prepare = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
with torch.inference_mode():
    print(model(prepare(Image.open(sys.argv[1], formats=["JPEG", "PNG"]).convert("RGB"))[None]).softmax(1).topk(5))
"""


MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


class Cost(NamedTuple):
    """CPU time of a process in seconds, and its peak memory in MiB."""

    seconds: float
    memory: float


def calls() -> Iterator[str]:
    """Yield tables of sessions, compared with the bare runtimes and the other libraries."""
    timm = FEATURES["timm"]().eval()
    model = FEATURES["featuretap"]().eval()
    threads = torch.get_num_threads()
    with TemporaryDirectory() as folder:
        path = registry.export(model, Path(folder) / "featuretap.onnx")
        session, openvino = registry.session(path), registry.session(path, runtime="openvino")
        bare, bare_openvino = onnx_session(str(path), threads), open_session(path, threads=threads)
        for batch, rounds in BATCHES.items():
            torch._dynamo.reset()
            images = torch.randn(batch, 3, 224, 224)
            array = images.numpy()
            exported = _export(timm, images, Path(folder) / f"timm-{batch}.onnx")
            last = FEATURES["timm"]().eval().to(memory_format=torch.channels_last)
            contenders: dict[str, Callable[[], object]] = {
                "timm": partial(timm, images),
                "timm, channels_last": partial(last, images.contiguous(memory_format=torch.channels_last)),
                "timm, torch.compile": partial(torch.compile(timm, dynamic=False), images),
                "torchvision": partial(FEATURES["torchvision"]().eval(), images),
                "ONNX Runtime, timm's export": partial(onnx_session(str(exported), threads).run, None, {IMAGE: array}),
                "OpenVINO, timm's export": partial(open_session(exported, threads=threads).run, array),
                "ONNX Runtime, featuretap's graph": partial(bare.run, None, {IMAGE: array}),
                "session, onnxruntime": partial(session, array),
                "OpenVINO, featuretap's graph": partial(bare_openvino.run, array),
                "session, openvino": partial(openvino, array),
            }
            with torch.inference_mode():
                timings = timed(contenders, rounds, warm_up=5, pause=PAUSE)
            least = registry.spec(NAME, features_only=True).macs(224, 224) * batch / limit()
            shares = {name: f"{least / timing.median:.0%}" for name, timing in timings.items()}
            speeds = {name: f"{1 / timing.ratio:.2f} ×" for name, timing in timings.items()}
            pairs = (
                ("session, onnxruntime", "ONNX Runtime, featuretap's graph"),
                ("session, openvino", "OpenVINO, featuretap's graph"),
            )
            added = "; ".join(f"{one} {_ratio(timings[one].seconds, timings[other].seconds)}" for one, other in pairs)
            yield section(
                f"Sessions, {batch} × 3 × 224 × 224",
                f"C1 to C5 of {NAME}, float32. timm's model is exported by `torch.onnx.export` for this size. "
                f"{rounds} rounds. Ratios to the bare runtime on the same graph: {added}.",
                milliseconds(timings, {"speed": speeds, "of the limit": shares}),
            )


def processes() -> Iterator[str]:
    """Yield a table of complete processes: CPU time and peak memory."""
    with TemporaryDirectory() as folder:
        names = ("cat.png", "v2.safetensors", "timm.safetensors")
        photograph, weights, timms = (Path(folder) / name for name in names)
        _photograph().save(photograph)
        model = registry.build("mobilenet_v2")
        registry.save(model, weights)
        registry.save(model, timms, "timm")
        command = [sys.executable, "-m", "featuretap.command_line"]
        predict = [*command, "predict", str(photograph), "--weights", str(weights)]
        maps = [*command, "taps", str(photograph), "--weights", str(weights), "--out", f"{folder}/taps.png"]
        export = [*command, "export", str(weights), str(Path(folder) / "a.onnx")]
        contenders = {
            "timm, prediction script": [sys.executable, "-c", TIMM_PREDICTS, str(photograph), str(timms)],
            "`featuretap predict --torch`": [*predict, "--torch"],
            "`featuretap predict`": predict,
            "`featuretap taps --torch`": [*maps, "--torch"],
            "`featuretap taps`": maps,
            "`featuretap export --torch`": [*export, "--torch"],
            "`featuretap export`": export,
        }
        costs: dict[str, list[Cost]] = {name: [] for name in contenders}
        for turn in range(ROUNDS + 1):
            for name, arguments in contenders.items():
                cost = cost_of(arguments)
                if turn:
                    costs[name].append(cost)
    rows = []
    first = costs[next(iter(costs))]
    for name, measured in costs.items():
        seconds = [cost.seconds for cost in measured]
        ratio = _ratio(seconds, [cost.seconds for cost in first])
        memory = f"{median(cost.memory for cost in measured):.0f}"
        rows.append([name, f"{median(seconds):.2f}", *ratio.split(" ", 1), memory])
    yield section(
        "Complete processes: one photograph, MobileNetV2",
        "CPU time (user and system) and peak memory. Ratios of CPU time compare with the first row, within each round. "
        f"{ROUNDS} rounds, after one untimed round.",
        table(["", "median CPU s", "ratio", "quartiles of the ratio", "peak MiB"], rows),
    )


def compiling() -> Iterator[str]:
    """Yield a table with the CPU time of `registry.compile` and `registry.export`, including verification."""
    rows = []
    with TemporaryDirectory() as folder:
        for name in (NAME, "mobilenet_v1"):
            for head, arguments in HEADS.items():
                model = registry.build(name, **arguments)  # type: ignore[arg-type]
                compiled = _cpu_seconds(partial(registry.compile, model))
                exported = _cpu_seconds(partial(registry.export, model, Path(folder) / "a.onnx"))
                rows.append([f"{name}, {head}", compiled, exported])
        timm, images = FEATURES["timm"]().eval(), torch.randn(2, 3, 224, 224)
        exported = _cpu_seconds(partial(_export, timm, images, Path(folder) / "b.onnx"))
        rows.append(["timm's backbone, `torch.onnx.export`", "", exported])
    yield section(
        "Compile and export",
        f"Median CPU seconds of {ROUNDS} calls, for ONNX Runtime and images of any size, including the comparison of "
        "outputs with the module. timm's model is exported for one size, without a comparison.",
        table(["", "`registry.compile`", "`registry.export`"], rows),
    )


def _cpu_seconds(call: Callable[[], object]) -> str:
    """Return the median CPU time of a call, after one untimed call."""
    measured = []
    for _ in range(ROUNDS + 1):
        start = process_time()
        call()
        measured.append(process_time() - start)
    return f"{median(measured[1:]):.2f}"


def cost_of(arguments: Sequence[str]) -> Cost:
    """Run a process, and return its CPU time and peak memory."""
    # Start it from a small process: the peak memory of a child includes the memory of its parent at the fork.
    ran = subprocess.run([sys.executable, "-c", MEASURE, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    seconds, kibibytes = ran.stdout.splitlines()[-1].split()
    return Cost(float(seconds), int(kibibytes) / 1024)


def _ratio(seconds: Sequence[float], base: Sequence[float]) -> str:
    """Return the median and quartiles of the ratios within each round, as text."""
    ratios = [value / first for value, first in zip(seconds, base, strict=True)]
    low, _, high = quantiles(ratios, method="inclusive")
    return f"{median(ratios):.3f} {low:.3f}–{high:.3f}"


def _export(model: nn.Module, images: Tensor, path: Path) -> Path:
    # torch.onnx.export prints each of its steps.
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        torch.onnx.export(model, (images,), path, input_names=[IMAGE], dynamo=True, external_data=False, verbose=False)
    return path


def _photograph() -> Image.Image:
    from skimage import data

    return Image.fromarray(data.chelsea())
