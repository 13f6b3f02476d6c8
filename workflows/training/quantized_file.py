"""The int8 file of a run with the setting `quantize`, and the comparison of its metrics with float32."""

import json
from collections.abc import Callable, Sequence
from math import isnan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from featuretap import registry
from featuretap.runtimes.exportable import prepare_model
from featuretap.runtimes.formats import ONNX
from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import TrainingError
from featuretap.support.extras import check_extra
from featuretap.workflows.datasets.data_set import DataSet, Sample
from featuretap.workflows.training.configuration import Configuration
from featuretap.workflows.training.loop import compute_metrics, make_loader
from featuretap.workflows.training.run_folder import BEST
from featuretap.workflows.training.tasks.task import Metrics, Task

QUANTIZED, COMPARISON = "best.onnx", "quantization.json"

IMAGES = 256
"""Maximum number of images for calibration and for comparison; `quantize` may use fewer for calibration."""


def check_quantizable(model: nn.Module, processes: int) -> None:
    """Check, before training, that the model can be quantized at the end of the run.

    Args:
        model: the model to train.
        processes: number of training processes.

    Raises:
        HeadError: the model is a detector that runtimes do not support.
        TrainingError: there are several processes, each of which would record other activation ranges.
        MissingExtraError: packages for ONNX are not installed.
    """
    check_extra("training with quantize", ONNX.extra, ONNX.modules)
    if processes > 1:
        raise TrainingError(f"quantize supports a single process, not {processes}; start one process")
    prepare_model(model)


def write_quantized(
    folder: Path,
    task: Task,
    data: DataSet,
    metrics: Metrics,
    configuration: Configuration,
    accelerator: Accelerator,
    log: Callable[[str], None],
) -> None:
    """Quantize the best weights of a run to `best.onnx`, and compare metrics in `quantization.json`.

    Args:
        folder: the run folder.
        task: task of the run.
        data: data set; training images calibrate the activation ranges, validation images give the metrics.
        metrics: metrics of the best weights with fake quantization.
        configuration: settings of the run.
        accelerator: accelerator of the run.
        log: called with a line about the metrics.

    Raises:
        FeaturetapError: as in `registry.quantize`.
    """
    model = registry.load(folder / BEST)
    with TemporaryDirectory(prefix="featuretap-") as scratch:
        images = {name: write_image_files(getattr(data, name), Path(scratch) / name) for name in ("train", "val")}
        registry.quantize(model, folder / QUANTIZED, images["train"], evaluate_on=images["val"])
    workers = configuration.workers or 0

    def evaluate(evaluated: nn.Module) -> Metrics:
        batches = make_loader(task, data.val, configuration.batch_size, workers, training=False)
        return compute_metrics(accelerator, task, evaluated, batches, lambda count: None)

    scores = {
        "float32": evaluate(model.to(accelerator.device)).scores,
        "fake quantization": metrics.scores,
        "int8": evaluate(_OnCPU(registry.compile(folder / QUANTIZED))).scores,
    }
    table = {
        kind: {name: None if isnan(value) else value for name, value in own.items()} for kind, own in scores.items()
    }
    replace_files({folder / COMPARISON: json.dumps(table, indent=2).encode()})
    metric = task.metrics[0]
    in_float, fake, integers = (own[metric] for own in scores.values())
    log(
        f"{metric} of the best epoch: {in_float:.4f} in float32, {fake:.4f} with fake quantization, {integers:.4f} in "
        f"int8 ({folder / QUANTIZED})"
    )


class _OnCPU(nn.Module):
    """A compiled model that runs on the CPU, with inputs and outputs on any device."""

    def __init__(self, compiled: nn.Module) -> None:
        super().__init__()
        self.call = compiled.forward

    def forward(self, images: Any) -> Any:
        device = (images if hasattr(images, "device") else images[0]).device
        return send_to_device(self.call(send_to_device(images, "cpu")), device)


def write_image_files(samples: Sequence[Sample], folder: Path) -> list[Path]:
    """Return image files of evenly spaced samples.

    Args:
        samples: samples of a data set.
        folder: new folder for samples that are not image files; they are written there as PNG.

    Returns:
        The paths of the files.
    """
    folder.mkdir()
    count = min(len(samples), IMAGES)
    paths = []
    for number in range(count):
        sample = samples[number * len(samples) // count]
        path = Path(sample.name)
        if not path.is_file():
            path = folder / f"{number}.png"
            sample.read()[0].save(path)
        paths.append(path)
    return paths
