"""Mixed precision: loss scaling, as float16 requires on GPUs, and settings that CPUs do not support."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_runs import coloured_folder, small_run

from featuretap.registry.errors import TrainingError
from featuretap.workflows.training import run
from featuretap.workflows.training.loop import Trainer, make_loader
from featuretap.workflows.training.run import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("data") / "colours")


@pytest.mark.parametrize(("scale", "updates"), [(1024.0, 3), (torch.finfo(torch.float32).max, 0)])
def test_a_step_that_overflows_is_skipped_by_the_schedule_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, updates: int
) -> None:
    """An epoch has 3 steps, all of which overflow with the second scale. Warnings are errors in this test."""
    trainers: list[Trainer] = []
    make = run._make_trainer

    def make_with_scaler(accelerator: Any, *arguments: Any) -> Any:
        # Accelerate does the same for float16 on a GPU.
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        trainer, batches = make(accelerator, *arguments)
        trainers.append(trainer)
        return trainer, batches

    monkeypatch.setattr(run, "_make_trainer", make_with_scaler)
    train(small_run(data, tmp_path / "run", mixed_precision="bf16", epochs=1, ema=0.9), log=lambda line: None)
    assert trainers[0].schedule.updates == updates


def test_float16_on_a_cpu_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(TrainingError) as caught:
        train(small_run(data, tmp_path / "run", mixed_precision="fp16"))
    assert str(caught.value) == (
        "mixed_precision='fp16' needs a GPU, and PyTorch finds none; use 'bf16', which runs on CPUs, or 'no'"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("has_gpu", [True, False])
def test_batches_are_pinned_for_a_gpu(has_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from featuretap.specs.preprocessing import Preprocessing
    from featuretap.workflows.training.tasks.classification import ClassificationTask

    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    task = ClassificationTask(("cat", "dog"), Preprocessing(32, 32, (0.5,) * 3, (0.5,) * 3, "bilinear"))
    assert make_loader(task, [], 2, 0, training=False).pin_memory == has_gpu
