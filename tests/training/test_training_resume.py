"""An interrupted run resumes to the same result, and anything else is refused."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_runs import coloured_folder, small_run

from featuretap import registry
from featuretap.registry.errors import TrainingError
from featuretap.specs.description import Description
from featuretap.specs.preprocessing import Preprocessing
from featuretap.workflows.training.run import train
from featuretap.workflows.training.run_folder import lock_folder, read_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("data") / "colours")


def interrupted(data: Path, out: Path, after: int, **settings: Any) -> None:
    """Start a run and interrupt it after the given epoch."""

    def log(line: str) -> None:
        if line.startswith(f"epoch {after}/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_run(data, out, **settings), log=log)


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted after the first of two epochs."""
    out = tmp_path_factory.mktemp("begun") / "run"
    interrupted(data, out, 1)
    return out


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Path:
    """A copy of the interrupted run that a test can modify or resume."""
    return Path(shutil.copytree(begun, tmp_path / "run"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    return train(small_run(data, tmp_path_factory.mktemp("finished") / "run"), log=lambda line: None).folder


@pytest.fixture
def finished_folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test can modify or resume."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def rows(folder: Path) -> list[list[str]]:
    """Return the rows of the history without the timing columns."""
    return [line.split(",")[:-2] for line in (folder / "history.csv").read_text().splitlines()]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ema": 0.9, "augment": "trivial", "accumulate": 2},
        {"schedule": "plateau", "patience": 0, "freeze": "C2", "unfreeze_every": 1, "optimizer": "sgd"},
    ],
    ids=["plain", "average, augmentation, accumulation", "plateau, thawing, SGD"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(settings: dict[str, Any], data: Path, tmp_path: Path) -> None:
    whole = train(small_run(data, tmp_path / "whole", epochs=3, **settings), log=lambda line: None)
    interrupted(data, tmp_path / "broken", 1, epochs=3, **settings)
    lines: list[str] = []
    broken = train(read_run(tmp_path / "broken", {}), resume=True, log=lines.append)
    assert lines[2] == "resuming after epoch 1"
    assert rows(broken.folder) == rows(whole.folder)
    for name in ("last.safetensors", "best.safetensors", "per-class.csv"):
        assert (broken.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    assert (broken.epoch, broken.metrics.scores) == (whole.epoch, whole.metrics.scores)


def test_a_finished_run_can_be_given_more_epochs(finished_folder: Path) -> None:
    result = train(read_run(finished_folder, {"epochs": 4}), resume=True, log=lambda line: None)
    header, *epochs = rows(result.folder)
    assert [row[0] for row in epochs] == ["1", "2", "3", "4"]
    assert float(epochs[2][header.index("lr")]) > 1e-4


def test_a_run_cannot_be_given_fewer_epochs_than_it_has_done(finished_folder: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        train(read_run(finished_folder, {"epochs": 1}), resume=True, log=lambda line: None)
    assert str(caught.value) == (
        f"the run in '{finished_folder}' has already completed 2 epochs, more than epochs=1; increase epochs, or leave "
        "it out"
    )


def test_a_run_resumes_without_its_initial_weights_and_from_any_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = registry.save(registry.build("mobilenet_v1", width=0.25, num_classes=3), tmp_path / "start.safetensors")
    monkeypatch.chdir(tmp_path)
    began = {"backbone": None, "options": {}, "weights": start.name}
    interrupted(Path(os.path.relpath(data)), tmp_path / "run", 1, **began)
    start.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = train(read_run(tmp_path / "run", {}), resume=True, log=lambda line: None)
    said = registry.load(result.folder / "last.safetensors").description
    assert isinstance(said, Description)
    assert (said.name, said.options, len(rows(result.folder))) == ("mobilenet_v1", {"width": 0.25}, 3)


def test_a_run_without_its_state_cannot_be_resumed(finished_folder: Path) -> None:
    (finished_folder / "resume.pt").unlink()
    before = (finished_folder / "last.safetensors").read_bytes()
    with pytest.raises(TrainingError) as caught:
        train(read_run(finished_folder, {}), resume=True, log=lambda line: None)
    assert str(caught.value) == (
        f"'{finished_folder}' has no resume.pt, so the run cannot be resumed; start a new run with its weights"
    )
    assert (finished_folder / "last.safetensors").read_bytes() == before


def test_two_runs_do_not_write_into_one_folder(data: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def log(line: str) -> None:
        if line.startswith("epoch 1/") and not refused:
            with pytest.raises(TrainingError) as caught, lock_folder(tmp_path / "run", resume=True):
                pass
            refused.append(str(caught.value))

    train(small_run(data, tmp_path / "run", epochs=1), log=log)
    assert refused == [
        f"another process is training in '{tmp_path / 'run'}'; wait until it ends, or set out to another folder"
    ]


def test_a_resumed_run_cannot_change_its_backbone(begun: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        read_run(begun, {"backbone": "mobilenet_v2"})
    assert str(caught.value) == (
        f"the run in '{begun}' was started with backbone='mobilenet_v1', not backbone='mobilenet_v2'; leave it out, or "
        "start a new run"
    )


def test_the_state_of_another_model_is_refused(data: Path, folder: Path, tmp_path: Path) -> None:
    interrupted(data, tmp_path / "other", 1, options={"width": 0.5})
    (tmp_path / "other" / "resume.pt").replace(folder / "resume.pt")
    with pytest.raises(TrainingError) as caught:
        train(read_run(folder, {}), resume=True, log=lambda line: None)
    assert str(caught.value) == (
        f"'{folder / 'resume.pt'}' was written by a run with options={{'width': 0.5}}, but now "
        "options={'width': 0.25}; resume with the settings and data of the run"
    )


def test_fewer_images_are_refused(data: Path, folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(data, tmp_path / "data"))
    (other / "red" / "0.png").unlink()
    with pytest.raises(TrainingError) as caught:
        train(read_run(folder, {"data": str(other)}), resume=True, log=lambda line: None)
    assert str(caught.value).startswith(f"'{folder / 'resume.pt'}' was written by a run with training images=")


def test_the_same_images_in_other_classes_are_refused(data: Path, folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(data, tmp_path / "data"))
    (other / "red").rename(other / "other")
    (other / "blue").rename(other / "red")
    (other / "other").rename(other / "blue")
    (other / "blue" / "3.png").rename(other / "blue" / "three.png")
    with pytest.raises(TrainingError) as caught:
        train(read_run(folder, {"data": str(other)}), resume=True, log=lambda line: None)
    assert str(caught.value) == (
        f"'{folder / 'resume.pt'}' was written by a run on other images or classes; resume with the data of the run"
    )


@pytest.mark.parametrize("content", [b"", b"rubbish", None], ids=["empty", "rubbish", "cut off"])
def test_a_damaged_state_is_refused(folder: Path, content: bytes | None) -> None:
    state = folder / "resume.pt"
    state.write_bytes(state.read_bytes()[:5000] if content is None else content)
    with pytest.raises(TrainingError) as caught:
        train(read_run(folder, {}), resume=True, log=lambda line: None)
    assert str(caught.value) == (
        f"'{state}' is damaged, so the run cannot be resumed; start a new run with weights="
        f"'{folder / 'last.safetensors'}'"
    )


def test_pickled_code_in_a_state_is_not_executed(folder: Path, tmp_path: Path) -> None:
    trap = Trap(tmp_path)
    torch.save(
        {"identity": {}, "history": [], "best": 0, "judgement": None, "parts": {"model": trap}}, folder / "resume.pt"
    )
    with pytest.raises(TrainingError):
        train(read_run(folder, {}), resume=True, log=lambda line: None)
    assert not (tmp_path / "trapped").exists()


class Trap:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path / "trapped"),)


@pytest.mark.parametrize("kind", ["nothing", "a folder", "a file"])
def test_a_path_that_is_not_a_run_cannot_be_resumed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run"
    if kind == "a folder":
        path.mkdir()
    if kind == "a file":
        path.write_text("")
    with pytest.raises(TrainingError) as caught:
        read_run(path, {})
    kind_stated = "a file" if kind == "a file" else "not a run folder"
    assert str(caught.value) == (
        f"'{path}' is {kind_stated}; resume needs the folder that contains the run's configuration.toml (to start a "
        "new run from a weights file, set weights)"
    )


def test_a_run_does_not_overwrite_another(data: Path, begun: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        train(small_run(data, begun), log=lambda line: None)
    assert str(caught.value) == (f"'{begun}' already contains a run; resume it, or set out to another folder")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("")
    with pytest.raises(TrainingError) as caught:
        train(small_run(data, tmp_path / "thesis"), log=lambda line: None)
    assert str(caught.value) == f"'{tmp_path / 'thesis'}' contains other files; set out to another folder"


def test_a_resumed_run_keeps_the_epsilon_and_preprocessing_of_its_initial_weights(data: Path, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v1", width=0.25, num_classes=3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.5
    said = model.description
    assert isinstance(said, Description)
    model.description = replace(said, preprocessing=Preprocessing(40, 32, (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)))
    start = registry.save(model, tmp_path / "start.safetensors")
    settings: dict[str, Any] = {"backbone": None, "options": {}, "weights": str(start), "size": None}
    whole = train(small_run(data, tmp_path / "whole", **settings), log=lambda line: None)
    interrupted(data, tmp_path / "broken", 1, **settings)
    start.unlink()
    broken = train(read_run(tmp_path / "broken", {}), resume=True, log=lambda line: None)
    assert rows(broken.folder) == rows(whole.folder)
    assert (broken.folder / "last.safetensors").read_bytes() == (whole.folder / "last.safetensors").read_bytes()
