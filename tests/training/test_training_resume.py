"""A run that was interrupted goes on to the same result, and nothing else is taken for it."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_runs import coloured_folder, small_run

from featuretap import registry
from featuretap.registry.description import Description
from featuretap.registry.errors import TrainingError
from featuretap.registry.preprocessing import Preprocessing
from featuretap.training.run import train
from featuretap.training.run_folder import claimed, continued


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("data") / "colours")


def interrupted(data: Path, out: Path, after: int, **settings: Any) -> None:
    """Begin a run, and interrupt it when an epoch is done."""

    def say(line: str) -> None:
        if line.startswith(f"epoch {after}/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_run(data, out, **settings), say=say)


def rows(folder: Path) -> list[list[str]]:
    """Return the history without what the clock says."""
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
def test_an_interrupted_run_ends_as_an_unbroken_one(settings: dict[str, Any], data: Path, tmp_path: Path) -> None:
    whole = train(small_run(data, tmp_path / "whole", epochs=4, **settings), say=lambda line: None)
    interrupted(data, tmp_path / "broken", 2, epochs=4, **settings)
    lines: list[str] = []
    broken = train(continued(tmp_path / "broken", {}), resume=True, say=lines.append)
    assert lines[1] == "going on after epoch 2"
    assert rows(broken.folder) == rows(whole.folder)
    for name in ("last.safetensors", "best.safetensors", "per-class.csv"):
        assert (broken.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    assert (broken.epoch, broken.judgement.scores) == (whole.epoch, whole.judgement.scores)


def test_a_finished_run_can_be_given_more_epochs(data: Path, tmp_path: Path) -> None:
    train(small_run(data, tmp_path / "run", epochs=2), say=lambda line: None)
    result = train(continued(tmp_path / "run", {"epochs": 4}), resume=True, say=lambda line: None)
    header, *epochs = rows(result.folder)
    assert [row[0] for row in epochs] == ["1", "2", "3", "4"]
    assert float(epochs[2][header.index("lr")]) > 1e-4


def test_a_run_cannot_be_given_fewer_epochs_than_it_has_done(data: Path, tmp_path: Path) -> None:
    train(small_run(data, tmp_path / "run", epochs=2), say=lambda line: None)
    with pytest.raises(TrainingError) as caught:
        train(continued(tmp_path / "run", {"epochs": 1}), resume=True, say=lambda line: None)
    assert str(caught.value) == (
        f"the run in '{tmp_path / 'run'}' has done 2 epochs, more than epochs=1; give more, or leave epochs out"
    )


def test_a_run_goes_on_without_the_weights_that_it_began_with_and_from_anywhere(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = registry.save(registry.build("mobilenet_v1", width=0.25, num_classes=3), tmp_path / "start.safetensors")
    monkeypatch.chdir(tmp_path)
    began = {"backbone": None, "options": {}, "weights": start.name, "epochs": 3}
    interrupted(Path(os.path.relpath(data)), tmp_path / "run", 1, **began)
    start.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = train(continued(tmp_path / "run", {}), resume=True, say=lambda line: None)
    said = registry.load(result.folder / "last.safetensors").description
    assert isinstance(said, Description)
    assert (said.name, said.options, len(rows(result.folder))) == ("mobilenet_v1", {"width": 0.25}, 4)


def test_a_run_that_has_lost_its_state_is_not_begun_again(data: Path, tmp_path: Path) -> None:
    interrupted(data, tmp_path / "run", 2)
    (tmp_path / "run" / "resume.pt").unlink()
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    with pytest.raises(TrainingError) as caught:
        train(continued(tmp_path / "run", {}), resume=True, say=lambda line: None)
    assert str(caught.value) == (
        f"'{tmp_path / 'run'}' has lost its resume.pt, without which its run cannot go on; begin another with its "
        "weights"
    )
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def test_two_runs_do_not_write_into_one_folder(data: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def say(line: str) -> None:
        if line.startswith("epoch 1/") and not refused:
            with pytest.raises(TrainingError) as caught, claimed(tmp_path / "run", resume=True):
                pass
            refused.append(str(caught.value))

    train(small_run(data, tmp_path / "run", epochs=1), say=say)
    assert refused == [
        f"another process is training into '{tmp_path / 'run'}'; wait for it, or choose another folder with out"
    ]


def test_a_run_goes_on_as_it_began(data: Path, tmp_path: Path) -> None:
    interrupted(data, tmp_path / "run", 1)
    with pytest.raises(TrainingError) as caught:
        continued(tmp_path / "run", {"backbone": "mobilenet_v2"})
    assert str(caught.value) == (
        f"the run in '{tmp_path / 'run'}' began with backbone='mobilenet_v1', not backbone='mobilenet_v2'; leave it "
        "out, or begin another run"
    )


def test_the_state_of_another_model_is_refused(data: Path, tmp_path: Path) -> None:
    interrupted(data, tmp_path / "small", 1)
    interrupted(data, tmp_path / "other", 1, options={"width": 0.5})
    (tmp_path / "other" / "resume.pt").replace(tmp_path / "small" / "resume.pt")
    with pytest.raises(TrainingError) as caught:
        train(continued(tmp_path / "small", {}), resume=True, say=lambda line: None)
    assert str(caught.value) == (
        f"'{tmp_path / 'small' / 'resume.pt'}' was written by a run with options={{'width': 0.5}}, and this one has "
        "options={'width': 0.25}; a run goes on as it began"
    )


def test_other_data_is_refused(tmp_path: Path) -> None:
    data = coloured_folder(tmp_path / "data")
    interrupted(data, tmp_path / "run", 1)
    (data / "red" / "0.png").unlink()
    with pytest.raises(TrainingError) as caught:
        train(continued(tmp_path / "run", {}), resume=True, say=lambda line: None)
    assert str(caught.value).startswith(f"'{tmp_path / 'run' / 'resume.pt'}' was written by a run with images to ")


def test_the_same_images_in_other_classes_are_refused(tmp_path: Path) -> None:
    data = coloured_folder(tmp_path / "data")
    interrupted(data, tmp_path / "run", 1)
    (data / "red").rename(data / "other")
    (data / "blue").rename(data / "red")
    (data / "other").rename(data / "blue")
    (data / "blue" / "3.png").rename(data / "blue" / "three.png")
    with pytest.raises(TrainingError) as caught:
        train(continued(tmp_path / "run", {}), resume=True, say=lambda line: None)
    assert str(caught.value) == (
        f"'{tmp_path / 'run' / 'resume.pt'}' was written by a run on other images, or on these in other classes; a run "
        "goes on as it began"
    )


@pytest.mark.parametrize("content", [b"", b"rubbish", None], ids=["empty", "rubbish", "cut off"])
def test_a_damaged_state_is_said_to_be_damaged(data: Path, tmp_path: Path, content: bytes | None) -> None:
    interrupted(data, tmp_path / "run", 1)
    state = tmp_path / "run" / "resume.pt"
    state.write_bytes(state.read_bytes()[:5000] if content is None else content)
    with pytest.raises(TrainingError) as caught:
        train(continued(tmp_path / "run", {}), resume=True, say=lambda line: None)
    assert str(caught.value) == (
        f"'{state}' is damaged, so that its run cannot go on; begin another with the last weights beside it"
    )


def test_no_code_in_a_state_is_run(data: Path, tmp_path: Path) -> None:
    interrupted(data, tmp_path / "run", 1)
    state = tmp_path / "run" / "resume.pt"
    torch.save({"identity": {}, "history": [], "best": 0, "judgement": None, "parts": {"model": Trap(tmp_path)}}, state)
    with pytest.raises(TrainingError):
        train(continued(tmp_path / "run", {}), resume=True, say=lambda line: None)
    assert not (tmp_path / "trapped").exists()


class Trap:
    """Something whose reading as a pickle makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path / "trapped"),)


@pytest.mark.parametrize("kind", ["nothing", "a folder", "a file"])
def test_what_is_no_run_cannot_go_on(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run"
    if kind == "a folder":
        path.mkdir()
    if kind == "a file":
        path.write_text("")
    with pytest.raises(TrainingError) as caught:
        continued(path, {})
    said = "a file" if kind == "a file" else "no folder of a run"
    assert str(caught.value) == (
        f"'{path}' is {said}, and a run goes on from its folder, which holds configuration.toml; to begin another run "
        "with the weights in a file, give weights"
    )


def test_a_run_does_not_overwrite_another(data: Path, tmp_path: Path) -> None:
    interrupted(data, tmp_path / "run", 1)
    with pytest.raises(TrainingError) as caught:
        train(small_run(data, tmp_path / "run"), say=lambda line: None)
    assert str(caught.value) == (
        f"'{tmp_path / 'run'}' holds a run already; go on with resume, or choose another folder with out"
    )
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("")
    with pytest.raises(TrainingError) as caught:
        train(small_run(data, tmp_path / "thesis"), say=lambda line: None)
    assert str(caught.value) == f"'{tmp_path / 'thesis'}' holds something else; choose another folder with out"


def test_a_run_keeps_the_epsilon_and_the_preprocessing_of_the_weights_that_it_began_with(
    data: Path, tmp_path: Path
) -> None:
    model = registry.build("mobilenet_v1", width=0.25, num_classes=3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.5
    said = model.description
    assert isinstance(said, Description)
    model.description = replace(said, preprocessing=Preprocessing(40, 32, (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)))
    start = registry.save(model, tmp_path / "start.safetensors")
    settings: dict[str, Any] = {"backbone": None, "options": {}, "weights": str(start), "size": None}
    whole = train(small_run(data, tmp_path / "whole", **settings), say=lambda line: None)
    interrupted(data, tmp_path / "broken", 1, **settings)
    start.unlink()
    broken = train(continued(tmp_path / "broken", {}), resume=True, say=lambda line: None)
    assert rows(broken.folder) == rows(whole.folder)
    assert (broken.folder / "last.safetensors").read_bytes() == (whole.folder / "last.safetensors").read_bytes()
