"""`featuretap export` on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import Completed
from support.package import heavy_modules_after

from featuretap.registry import Registry
from featuretap.runtimes.torch_runtimes import load_script

Run = Callable[..., Completed]

SMALL = ("--weights", "none", "--taps", "C1", "--option", "width=0.5")


def refused(ran: Completed, message: str) -> None:
    assert (ran.status, ran.out, ran.err) == (2, "", f"featuretap: {message}\n")


def test_a_backbone_is_written_by_name(run: Run, registry: Registry, tmp_path: Path) -> None:
    target = tmp_path / "features.onnx"
    ran = run("export", "mobilenet_v1", target, *SMALL, "--size", "64x48", "--batch", 2)
    assert (ran.status, ran.out, ran.err) == (0, f"saved: {target}\n", "")
    opened = registry.compile(target)
    assert (opened.description.name, opened.outputs) == ("mobilenet_v1", ("C1",))
    assert dict(opened.description.options) == {"width": 0.5}
    assert opened(torch.zeros(2, 3, 64, 48))["C1"].shape == (2, 32, 32, 24)


def test_what_a_file_of_weights_holds_is_written(run: Run, registry: Registry, tmp_path: Path) -> None:
    weights = registry.save(registry.build("mobilenet_v1_025", num_classes=3), tmp_path / "three")
    for source in (weights, weights.parent):
        ran = run("export", source, tmp_path / "three.ts")
        assert (ran.status, ran.err) == (0, "")
        module, metadata = load_script(tmp_path / "three.ts")
        assert module(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
        assert json.loads(metadata["featuretap.num_classes"]) == 3
    assert run("export", weights, tmp_path / "c2.ts", "--taps", "C2").status == 0
    assert list(load_script(tmp_path / "c2.ts")[0](torch.zeros(1, 3, 64, 64))) == ["C2"]
    assert run("export", weights, tmp_path / "pyramid.ts", "--head", "fpn", "--taps", "C2,C3").status == 0
    assert list(load_script(tmp_path / "pyramid.ts")[0](torch.zeros(1, 3, 64, 64))) == ["P2", "P3"]


def test_a_name_is_a_name_wherever_one_stands(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mobilenet_v1_025").mkdir()
    assert run("export", "mobilenet_v1_025", "a.ts", "--weights", "none", "--features-only").status == 0
    refused(
        run("export", tmp_path / "mobilenet_v1_025", "a.ts"),
        f"the folder '{tmp_path}/mobilenet_v1_025' does not contain model.safetensors; pass a folder that "
        "registry.save wrote",
    )


def test_bad_input_is_one_line(run: Run, registry: Registry, tmp_path: Path) -> None:
    target = tmp_path / "a.ts"
    refused(
        run("export", "mobilenet_v1", tmp_path / "a.xml", "--format", "onnx"),
        "'a.xml' does not match the format 'onnx'; use a name that ends in .onnx",
    )
    refused(run("export", "mobilenet_v11", target), "no backbone named 'mobilenet_v11'; did you mean 'mobilenet_v1'?")
    weights = registry.save(registry.build("mobilenet_v1_025", num_classes=3), tmp_path / "three.safetensors")
    refused(
        run("export", weights, target, "--weights", "none"),
        f"the file '{weights}' already contains weights; leave --weights out",
    )
    refused(
        run("export", "mobilenet_v1_025", tmp_path / "no" / "a.ts", "--weights", "none"),
        f"cannot write '{tmp_path}/no/a.ts': No such file or directory",
    )
    refused(
        run("export", "mobilenet_v3_small", tmp_path / "a.onnx", "--weights", "none", "--head", "retinanet"),
        "ONNX files of the head 'retinanet' take one image of a fixed size; set the size, such as size=(320, 320), "
        "without a batch, or export as torchscript, which takes lists of images of any size",
    )
    assert not target.exists()


def test_wrong_names_are_found_without_torch(tmp_path: Path) -> None:
    code = (
        "from featuretap.command_line import main\n"
        f"try: main(['export', 'mobilenet_v1', {str(tmp_path / 'a.bin')!r}])\nexcept SystemExit: pass"
    )
    assert heavy_modules_after(code) == []
