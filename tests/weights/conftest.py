"""Fixtures for the weights tests."""

import logging
from collections.abc import Iterator

import pytest

from featuretap.registry import Registry


@pytest.fixture(scope="module")
def stem_file(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a weights file that holds a backbone cut after its stem."""
    model = registry.build("mobilenet_v2_050", features_only=True, taps=("C1",))
    return registry.save(model, tmp_path_factory.mktemp("saved") / "file.safetensors").read_bytes()


@pytest.fixture(scope="module")
def classifier_files(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Map each layout to the weights file of a small classifier with 4 classes."""
    model = registry.build("mobilenet_v3_small", num_classes=4)
    folder = tmp_path_factory.mktemp("small")
    return {
        layout: registry.save(model, folder / f"{layout}.safetensors", layout).read_bytes()
        for layout in ("featuretap", "timm")
    }


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, "featuretap"):
        yield caplog
