"""Training checkpoints: the state dict inside them, the prefixes of wrappers, and other contents."""

import collections
import datetime
import logging
import pathlib
import sys
import types
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from support.layouts import relative_difference
from support.oracles import timm_model, torchvision_model, with_statistics
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.weights.reading import read_checkpoint


def small(classes: int = 7) -> nn.Module:
    return with_statistics(torchvision_model("mobilenet_v3_small", num_classes=classes))


def averaged(model: nn.Module) -> AveragedModel:
    """Return a moving average that differs from the model."""
    average = AveragedModel(model, use_buffers=True)
    for tensor in average.parameters():
        tensor.data *= 1.25
    return average


def training_state(model: nn.Module) -> dict[str, Any]:
    """Return the non-weight entries of a checkpoint by torchvision's references/classification/train.py."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    return {
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 30).state_dict(),
        "epoch": 3,
        "args": Namespace(data_path="/data", lr=0.1, output_dir=Path("/runs/1"), weights=None),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
    }


def test_torchvisions_training_checkpoint_is_read(registry: Registry, tmp_path: Path) -> None:
    model = small()
    torch.save({"model": model.state_dict(), **training_state(model)}, tmp_path / "model_3.pth")
    loaded = registry.load(tmp_path / "model_3.pth")
    assert loaded.description.num_classes == 7
    assert relative_difference(loaded, model) < 1e-6


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".pt", ".bin", ".ckpt"])
def test_checkpoints_are_read_under_every_usual_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model_3{suffix}"
    torch.save({"model": {"a": torch.ones(1)}, "args": Namespace(lr=0.1)}, path)
    assert read_checkpoint(path).tensors["a"].item() == 1


def test_the_average_of_torchvisions_training_is_preferred(
    registry: Registry, tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    model = small()
    average = averaged(model)
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": model.state_dict(), "model_ema": average.state_dict(), **training_state(model)}, path)
    assert relative_difference(registry.load(path), average.module) < 1e-6
    assert notes.messages == [f"{path} has weights under 'model_ema', 'model'; loading 'model_ema'"]


@pytest.mark.parametrize("with_average", [False, True])
def test_checkpoints_that_timm_saves_are_read_as_timm_reads_them(
    registry: Registry, tmp_path: Path, with_average: bool
) -> None:
    model = with_statistics(timm_model("mobilenetv3_small_100", num_classes=7))
    average = ModelEmaV3(model) if with_average else None
    if average:
        for tensor in average.parameters():
            tensor.data *= 1.25
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = Namespace(model="mobilenetv3_small_100", lr=0.1, crop_pct=None, data_dir="/data", betas=[0.9, 0.99])
    saver = CheckpointSaver(model, optimizer, args, average, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=71.5)
    theirs = timm_model("mobilenetv3_small_100", num_classes=7, checkpoint_path=str(tmp_path / "model_best.pth.tar"))
    ours = registry.load(tmp_path / "checkpoint-0.pth.tar")
    assert relative_difference(ours, theirs) < 1e-6
    built = registry.build("mobilenet_v3_small", pretrained=tmp_path / "model_best.pth.tar", num_classes=7)
    assert relative_difference(built, theirs) < 1e-6


def test_a_lightning_checkpoint_is_read(registry: Registry, tmp_path: Path) -> None:
    model = small()
    wrapped = nn.Module()
    wrapped.model = model
    path = tmp_path / "epoch=3-step=100.ckpt"
    content = {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": wrapped.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4, "completed": 3}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "dirpath": "/a"}},
        "optimizer_states": [training_state(model)["optimizer"]],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "folder": Path("/runs")},
    }
    torch.save(content, path)
    assert relative_difference(registry.load(path), model) < 1e-6


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "module.": nn.DataParallel,
    "_orig_mod.": torch.compile,
    "model.": lambda model: nn.ModuleDict({"model": model}),
    "backbone.": lambda model: nn.ModuleDict({"backbone": model}),
    "encoder.": lambda model: nn.ModuleDict({"encoder": model}),
    "n_averaged and module.": AveragedModel,
}


@pytest.mark.parametrize("outer", ["", *WRAPPERS])
@pytest.mark.parametrize("inner", WRAPPERS)
def test_prefixes_of_wrappers_are_left_out_in_any_nesting(tmp_path: Path, inner: str, outer: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    wrapped = WRAPPERS[inner](model)
    if outer and (outer, inner) != ("_orig_mod.", "_orig_mod."):
        wrapped = WRAPPERS[outer](wrapped)
    torch.save({"state_dict": wrapped.state_dict()}, tmp_path / "file.pth")
    found = read_checkpoint(tmp_path / "file.pth").tensors
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in model.state_dict().items()
    }


def test_a_prefix_that_not_all_tensors_have_is_kept(tmp_path: Path) -> None:
    names = ("model.a", "model.b", "loss.weight")
    torch.save({"state_dict": {name: torch.zeros(1) for name in names}}, tmp_path / "file.ckpt")
    assert tuple(read_checkpoint(tmp_path / "file.ckpt").tensors) == names


KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "net", "weights", "module")


@pytest.mark.parametrize("first", range(len(KEYS)))
def test_the_first_known_key_is_loaded_and_logged(tmp_path: Path, notes: pytest.LogCaptureFixture, first: int) -> None:
    there = KEYS[first:]
    path = tmp_path / "file.pth"
    torch.save({key: {"a": torch.full((1,), float(KEYS.index(key)))} for key in reversed(there)}, path)
    assert read_checkpoint(path).tensors["a"].item() == first
    several = f"{path} has weights under {', '.join(map(repr, there))}; loading {there[0]!r}"
    assert notes.messages == ([several] if len(there) > 1 else [])


def test_a_state_dict_is_found_several_keys_deep(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file.pth"
    inner = {"model_ema": {"module": {"a": torch.zeros(1)}, "decay": 0.9}, "model": {"a": torch.ones(1)}}
    torch.save({"state_dict": inner, "epoch": 1}, path)
    with caplog.at_level(logging.WARNING, "featuretap"):
        assert read_checkpoint(path).tensors["a"].item() == 0
    assert caplog.messages == [f"{path} has weights under 'model_ema', 'model'; loading 'state_dict.model_ema'"]


def test_an_average_that_is_none_or_empty_is_passed_over(tmp_path: Path, notes: pytest.LogCaptureFixture) -> None:
    content = {"model_ema": None, "state_dict_ema": {}, "model": {"a": torch.ones(1)}}
    torch.save(content, tmp_path / "file.pth")
    assert read_checkpoint(tmp_path / "file.pth").tensors["a"].item() == 1
    assert not notes.messages


def test_a_tensor_may_have_the_name_of_a_known_key(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(1), "model": torch.zeros(2)}, tmp_path / "file.pth")
    assert read_checkpoint(tmp_path / "file.pth").shapes == {"weights": (1,), "model": (2,)}


def test_a_checkpoint_that_contains_itself_is_refused(registry: Registry, tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=r"'model' is dict, not a tensor"):
        registry.load(tmp_path / "file.pth")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "beside",
    [
        Namespace(lr=0.1, folder=Path("/data"), inner=Namespace(a=[1])),
        types.SimpleNamespace(lr=0.1),
        [Path("/data"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("c:\\a")],
        collections.defaultdict(list, {"a": [1]}),
        collections.deque([1, 2], maxlen=3),
        {"best": np.float64(0.5), "epoch": np.int64(3), "curve": np.arange(3.0)},
        [datetime.datetime(2026, 1, 2), datetime.timedelta(1)],
        [frozenset([1]), range(3), {1, 2}, 1j],
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_beside_the_tensors_are_skipped(tmp_path: Path, beside: object, legacy: bool) -> None:
    path, allowed = tmp_path / "file.pth", set(torch.serialization.get_safe_globals())
    content = {"args": beside, "model": {"a": torch.arange(3.0)}, "more": beside}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert read_checkpoint(path).tensors["a"].tolist() == [0, 1, 2]
    # PyTorch's global allowlist is unchanged.
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_settings_of_hydra_are_skipped_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("omegaconf.dictconfig")
    kind = type("DictConfig", (), {"__module__": module.__name__})
    module.DictConfig = kind  # type: ignore[attr-defined]
    value = kind()
    value.content = {"lr": 0.1}  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
        patched.setitem(sys.modules, module.__name__, module)
        torch.save({"state_dict": {"model.a": torch.ones(1)}, "hyper_parameters": value}, tmp_path / "file.ckpt")
    assert read_checkpoint(tmp_path / "file.ckpt").shapes == {"a": (1,)}


def test_a_class_that_the_reader_refuses_is_named(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.zeros(1)}, "best": timm.create_model("test_resnet")}, path)
    with pytest.raises(WeightsError) as error:
        registry.load(path)
    assert str(error.value) == (
        f"'{path}' contains timm.models.resnet.ResNet, which can run code when it is read; if you trust its source, "
        "load it "
        "with torch.load(path, weights_only=False), and save its state dict as a separate file"
    )


# torch.jit is deprecated, and torch.load warns about TorchScript files.
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file:UserWarning")
def test_a_torchscript_program_is_refused_with_how_to_save_its_weights(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "program.pt"
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    with pytest.raises(WeightsError) as error:
        registry.load(path)
    assert str(error.value) == (
        f"'{path}' is a TorchScript program; save its weights: torch.save(torch.jit.load(path).state_dict(), "
        "'weights.pth')"
    )


def test_an_archive_that_python_cannot_open_is_refused(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "disks.pth"
    torch.save({"a": torch.zeros(1)}, path)
    content = bytearray(path.read_bytes())
    locator = content.rfind(b"PK\x06\x07")
    # The byte that holds the archive's number of disks.
    content[locator + 16] = 3
    path.write_bytes(content)
    with pytest.raises(WeightsError) as error:
        registry.load(path)
    assert str(error.value).startswith(f"'{path}' is not a weights file that can be read safely; use a ")


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as before, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after:
        for name in before.namelist():
            after.writestr(name, before.read(name))
    with pytest.raises(WeightsError) as error:
        registry.load(path)
    unpacked = sum(entry.file_size for entry in zipfile.ZipFile(path).infolist())
    assert str(error.value) == (
        f"'{path}' is an archive of {path.stat().st_size:,} bytes that unpacks to {unpacked:,}; get it again from its "
        "source"
    )


def test_an_archive_with_folders_is_refused(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "folders.pth"
    torch.save({"a": torch.ones(1)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as before, zipfile.ZipFile(path, "w") as after:
        for name in before.namelist():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0x10 if name.endswith("data/0") else 0
            after.writestr(entry, before.read(name))
    with pytest.raises(WeightsError) as error:
        registry.load(path)
    assert str(error.value) == (
        f"'{path}' is an archive with 'plain/data/0' as a folder, which PyTorch never writes; get it again from its "
        "source"
    )


def test_tensors_of_more_values_than_the_file_are_refused(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "spread.pth"
    torch.save({"a": torch.zeros(1).expand(1000, 1000)}, path)
    with pytest.raises(WeightsError) as error:
        registry.load(path)
    assert str(error.value) == (
        f"'{path}' has {path.stat().st_size:,} bytes, but describes tensors of 4,000,000; get it again from its source"
    )
