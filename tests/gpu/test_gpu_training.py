"""Training on a GPU: scaled losses, loading, resumed runs, and metrics of outputs on a device."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from support.devices import HAS_GPU, on_cpu
from support.heads import build_head, images, loss_of, targets
from support.training_runs import coloured_folder, small_run

from featuretap.registry import Registry
from featuretap.specs.preprocessing import Preprocessing
from featuretap.workflows.training.loop import make_loader
from featuretap.workflows.training.run import evaluate, train
from featuretap.workflows.training.tasks.classification import ClassificationTask
from featuretap.workflows.training.tasks.detection import DetectionTask
from featuretap.workflows.training.tasks.segmentation import SegmentationTask
from featuretap.workflows.training.tasks.task import Metrics, Task

CLASSES = ("cat", "dog", "owl")
PREPROCESSING = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
MIXED = ["no", "bf16", "fp16"] if HAS_GPU else ["bf16"]


class Picture(NamedTuple):
    """A sample of the first class."""

    name: str
    label: int = 0

    def read(self) -> tuple[Image.Image, int]:
        return Image.open(self.name), self.label


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture
def deterministic() -> Any:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("head", ["classification", "lraspp", "ssdlite"])
def test_a_scaled_loss_changes_the_weights_and_one_that_overflows_does_not(
    registry: Registry, device: torch.device, head: str
) -> None:
    model = build_head(registry, "mobilenet_v3_small", head, width=0.25).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    changed = []
    for scale in (1024.0, torch.finfo(torch.float32).max):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        scaler = torch.amp.GradScaler(device.type, init_scale=scale)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype):
            loss = loss_of(model, head, 2, 64, 64, device=device)
        scaler.scale(loss * 16).backward()
        scaler.step(optimizer)
        scaler.update()
        after = zip(before, model.parameters(), strict=True)
        changed.append(not all(torch.equal(old, new) for old, new in after))
    assert changed == [True, False]


@pytest.mark.parametrize("mixed_precision", MIXED)
def test_a_run_on_the_device_goes_on_to_the_same_result(
    data: Path, device: torch.device, mixed_precision: str, tmp_path: Path, deterministic: None
) -> None:
    settings: dict[str, Any] = {"mixed_precision": mixed_precision, "epochs": 2, "ema": 0.9}
    unbroken = train(small_run(data, tmp_path / "unbroken", **settings), log=lambda line: None)

    def log(line: str) -> None:
        if line.startswith("epoch 1/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_run(data, tmp_path / "broken", **settings), log=log)
    resumed = train(small_run(data, tmp_path / "broken", **settings), resume=True, log=lambda line: None)
    for name in ("last.safetensors", "best.safetensors"):
        assert (resumed.folder / name).read_bytes() == (unbroken.folder / name).read_bytes()
    state: Any = torch.load(resumed.folder / "resume.pt", map_location=None, weights_only=True)
    moments = [value for each in state["parts"]["optimizer"]["state"].values() for value in each.values()]
    assert {value.device.type for value in moments if isinstance(value, torch.Tensor) and value.ndim} == {device.type}
    assert ("scaler" in state["parts"]) == (mixed_precision == "fp16")


def test_a_model_on_the_device_is_evaluated(registry: Registry, data: Path, device: torch.device) -> None:
    model = registry.build("mobilenet_v1", width=0.25, num_classes=3).to(device).eval()
    model.description = replace(model.description, classes=("blue", "green", "red"), preprocessing=PREPROCESSING)
    metrics, _, is_main = evaluate(model, str(data))
    assert is_main
    assert sum(each.occurrences for each in metrics.per_class) == metrics.confusion.sum() == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_pinned_where_a_gpu_reads_them(data: Path, device: torch.device, workers: int) -> None:
    samples = [Picture(str(path)) for path in sorted(data.rglob("*.png"))[:4]]
    loader = make_loader(ClassificationTask(CLASSES, PREPROCESSING), samples, 2, workers, training=True)
    for pixels, labels in loader:
        assert pixels.is_pinned() == labels.is_pinned() == (device.type == "cuda")
        copied = pixels.to(device, non_blocking=True)
        assert copied.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(copied.cpu(), pixels)


def classified(device: torch.device) -> tuple[Task, Any, Any]:
    return (
        ClassificationTask(CLASSES, PREPROCESSING),
        torch.randn(8, 3).to(device),
        torch.arange(8).remainder(3).to(device),
    )


def segmented(device: torch.device) -> tuple[Task, Any, Any]:
    masks = [torch.randint(3, (17, 23), dtype=torch.uint8).to(device) for _ in range(2)]
    return SegmentationTask(CLASSES, PREPROCESSING), [torch.randn(3, 9, 12).to(device) for _ in masks], masks


def detected(device: torch.device) -> tuple[Task, Any, Any]:
    truth = targets(1, 64, 96)
    truth[0]["iscrowd"] = torch.zeros(1, dtype=torch.int64)
    found = [{"boxes": truth[0]["boxes"] + 1, "labels": truth[0]["labels"], "scores": torch.tensor([0.9])}]
    move = [[{name: values.to(device) for name, values in each.items()} for each in many] for many in (found, truth)]
    return DetectionTask(CLASSES, PREPROCESSING), *move


@pytest.mark.parametrize("outputs", [classified, segmented, detected])
def test_metrics_of_outputs_on_the_device_equal_those_on_the_cpu(accelerator: torch.device, outputs: Any) -> None:
    results: list[Metrics] = []
    for where in (torch.device("cpu"), accelerator):
        torch.manual_seed(0)
        task, found, truth = outputs(where)
        evaluator = task.evaluator(where)
        evaluator.update(found, truth)
        results.append(evaluator.compute())
        if task.has_evaluation_loss:
            loss, count = task.evaluation_loss(found, truth)
            results[-1].scores["loss"] = float(on_cpu(loss))
            assert int(on_cpu(count)) > 0
    assert results[1].scores == pytest.approx(results[0].scores, nan_ok=True)
    assert [each[:2] for each in results[1].per_class] == [each[:2] for each in results[0].per_class]
    np.testing.assert_array_equal(results[1].confusion, results[0].confusion)


def test_losses_of_tasks_are_computed_on_the_device(registry: Registry, accelerator: torch.device) -> None:
    """Masks of different sizes are padded on the device."""
    task = SegmentationTask(CLASSES, PREPROCESSING)
    model = build_head(registry, "mobilenet_v3_small", "lraspp", width=0.25).to(accelerator)
    pixels = [image.to(accelerator) for size in ((64, 96), (33, 40)) for image in images(1, *size)]
    masks = [torch.randint(3, each.shape[1:], dtype=torch.uint8).to(accelerator) for each in pixels]
    loss = task.loss(model, pixels, masks)
    loss.backward()
    assert loss.device == accelerator
    assert 0 < loss.item() < 10
