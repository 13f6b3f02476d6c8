"""The benchmark of `make gpu`. Without a GPU, it runs with tiny images on the CPU."""

import time

import pytest
import torch

from benchmarks import gpu
from benchmarks.__main__ import ON_REQUEST, SECTIONS


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> float:
    """Limit the benchmark to one round, and return a deadline that has already passed."""
    monkeypatch.setattr(gpu, "LEAST_ROUNDS", 1)
    monkeypatch.setattr(gpu, "WARM_UP", 0)
    return time.monotonic()


def contenders(text: str) -> list[str]:
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == "|  | median ms | ratio | quartiles of the ratio | images/s |"
    return [row.split("|")[1].strip() for row in rows[2:]]


def test_features_are_measured_beside_timm_and_torchvision(device: torch.device, quick: float) -> None:
    tables = list(
        gpu.features(
            device, quick, networks=("mobilenet_v2",), batches=(1, 2), dtypes=(torch.float32,), side=32, compiled=None
        )
    )
    assert [text.splitlines()[0] for text in tables] == [
        f"## Features on {device.type}, mobilenet_v2, {batch} × 3 × 32 × 32, torch.float32" for batch in (1, 2)
    ]
    for text in tables:
        assert contenders(text) == [
            "timm",
            "torchvision",
            "featuretap",
            "timm, channels_last",
            "featuretap, channels_last",
        ]


def test_a_training_step_is_measured(device: torch.device, quick: float) -> None:
    text = gpu.training(device, quick, batch=2, side=32)
    assert contenders(text) == ["timm", "torchvision", "featuretap"]


def test_extraction_is_measured(device: torch.device, quick: float) -> None:
    text = gpu.extraction(device, quick, images=2)
    assert contenders(text) == ["timm, a plain loop", "featuretap extract"]


def test_the_section_is_run_by_its_name_only() -> None:
    assert ON_REQUEST["gpu"] is gpu.gpu
    assert "gpu" not in SECTIONS


def test_make_gpu_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        gpu.check()
    message = "make gpu needs an NVIDIA GPU, and PyTorch finds none; make test-gpu runs the tests on the CPU"
    assert str(caught.value) == message
