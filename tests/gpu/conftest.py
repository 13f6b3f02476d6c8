"""The devices of these tests: the GPU if PyTorch sees one, otherwise the CPU or a simulated device."""

import os
from collections.abc import Iterator

import pytest
import torch
from support.devices import HAS_GPU, another_device

# Required for deterministic matrix products on the GPU. It is read at their first use.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(params=["cuda" if HAS_GPU else "cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The GPU, or the CPU."""
    return torch.device(request.param)


@pytest.fixture(params=["cuda" if HAS_GPU else "simulated"])
def accelerator(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A device other than the CPU: the GPU, or a simulated device that rounds like a GPU."""
    if request.param == "cuda":
        yield torch.device("cuda", 0)
    else:
        with another_device(rounds=True) as simulated:
            yield simulated
