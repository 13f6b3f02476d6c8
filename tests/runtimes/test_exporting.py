"""Models exported for other runtimes: outputs, metadata, and no file left behind after a failed export."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.full_disk import full_disk
from support.oracles import with_statistics
from torch import Tensor, nn

from featuretap.registry import Registry
from featuretap.registry.errors import ExportError, FeaturetapError, HeadError, MissingExtraError, OptionError
from featuretap.registry.specs import RE, BackboneSpec, Conv
from featuretap.runtimes import torch_runtimes
from featuretap.runtimes.formats import FORMATS

FILES = {form.name: f"{form.name}{form.suffixes[0]}" for form in FORMATS}
TINY = BackboneSpec("tiny", stages=((Conv(3, 8, RE),), (Conv(3, 12, RE),)))

# How to run the exported files without featuretap.
READERS = """
import json, sys, torch, numpy
folder, images = sys.argv[1], torch.load(sys.argv[1] + "/images.pth")

import onnxruntime
session = onnxruntime.InferenceSession(folder + "/onnx.onnx", providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
onnx = dict(zip(names, session.run(names, {"image": images.numpy()})))
said = {"onnx": session.get_modelmeta().custom_metadata_map}

import openvino
core = openvino.Core()
model = core.read_model(folder + "/openvino.xml")
made = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"image": images.numpy()})
xml = {output.get_any_name(): made[output] for output in made}
section = model.get_rt_info(["featuretap"]).value
said["openvino"] = {"featuretap." + name: value for name, value in section.items()}

extra = {"featuretap.json": ""}
program = torch.export.load(folder + "/torch-export.pt2", extra_files=extra).module()(images)
said["torch-export"] = json.loads(extra["featuretap.json"])

extra = {"featuretap.json": ""}
script = torch.jit.load(folder + "/torchscript.torchscript", _extra_files=extra)(image=images)
said["torchscript"] = json.loads(extra["featuretap.json"])

package = torch._inductor.aoti_load_package(folder + "/aot.pt2")
said["aot"] = package.get_metadata()
names = json.loads(said["aot"]["featuretap.signature"])["outputs"]
with torch.no_grad():
    aot = dict(zip(names, package(images)))

found = {"onnx": onnx, "openvino": xml, "torch-export": program, "torchscript": script, "aot": aot}
tensors = {form: {name: torch.as_tensor(map) for name, map in maps.items()} for form, maps in found.items()}
torch.save((tensors, said), folder + "/read.pth")
print("featuretap" in sys.modules)
"""


@pytest.fixture(scope="module")
def tiny(registry: Registry) -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(registry.build(TINY, features_only=True, taps=("C2", "C1")))


@pytest.fixture(scope="module")
def files(registry: Registry, tiny: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one exported file per format, all from the same model."""
    folder = tmp_path_factory.mktemp("exported")
    for form, name in FILES.items():
        assert registry.export(tiny.train(), folder / name, form) == folder / name
    assert tiny.training
    return folder


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Any:
    return model.eval()(images)


def agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, feature in expected.items():
        assert found[name].shape == feature.shape
        assert (found[name] - feature).abs().max() <= 1e-4 * feature.abs().max()


def test_the_steps_of_exporting_and_compiling_are_logged(
    registry: Registry, tiny: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="featuretap"):
        registry.export(tiny, tmp_path / "tiny.onnx")
        registry.export(tiny, tmp_path / "tiny.torchscript")
        registry.compile(tiny)
    assert caplog.messages == [
        "writing onnx",
        "comparing onnx with the model",
        "tracing torchscript",
        "comparing torchscript with the model",
        "compiling 'tiny' for 'onnxruntime'",
        "comparing 'onnxruntime' with the model",
    ]


def test_files_are_read_without_featuretap_and_describe_the_model(files: Path, tiny: nn.Module) -> None:
    images = torch.randn(2, 3, 45, 67)
    torch.save(images, files / "images.pth")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READERS, str(files)], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "False\n"
    found, said = torch.load(files / "read.pth")
    assert set(found) == set(said) == set(FILES)
    for form, maps in found.items():
        agree(maps, answers(tiny, images))
        metadata = said[form]
        assert metadata["featuretap.name"] == "tiny"
        assert json.loads(metadata["featuretap.taps"]) == ["C2", "C1"]
        assert json.loads(metadata["featuretap.preprocessing"])["mean"] == [0.485, 0.456, 0.406]
        assert json.loads(metadata["featuretap.signature"])["outputs"] == ["C2", "C1"]


def test_runtimes_open_files_in_a_fresh_process(files: Path, tiny: nn.Module) -> None:
    images = torch.randn(3, 3, 33, 50)
    torch.save(images, files / "images.pth")
    code = (
        "import sys, torch; from featuretap import registry; folder = sys.argv[1]\n"
        "images = torch.load(folder + '/images.pth')\n"
        "files = {'onnxruntime': 'onnx.onnx', 'openvino': 'openvino.xml', 'aot': 'aot.pt2'}\n"
        "opened = [registry.compile(f'{folder}/{name}', runtime) for runtime, name in files.items()]\n"
        "opened.append(registry.compile(f'{folder}/onnx.onnx', 'openvino'))\n"
        "assert all(model.description.name == 'tiny' and model.taps['C2'].stride == 4 for model in opened)\n"
        "torch.save([model(images) for model in opened], folder + '/opened.pth')\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(files)], check=True)
    for found in torch.load(files / "opened.pth"):
        agree(found, answers(tiny, images))


def test_aot_refuses_a_program_of_torch_export(files: Path, registry: Registry) -> None:
    path = files / FILES["torch-export"]
    with pytest.raises(ExportError) as raised:
        registry.compile(path, "aot")
    assert str(raised.value) == (
        f"{str(path)!r} is a torch.export program, not an AOTInductor package; open it with torch.export.load, or "
        "write a package with featuretap export NAME torch-export.pt2 --format aot"
    )


def test_a_program_does_not_contain_its_example_images(files: Path) -> None:
    assert (files / FILES["torch-export"]).stat().st_size < 100_000


@pytest.mark.parametrize(
    ("name", "options", "target", "fixed"),
    [
        ("mobilenet_v1_025", {"num_classes": 3, "in_channels": 1}, "a.pt2", {"size": (64, 33), "batch": 2}),
        ("mobilenet_v1_025", {"head": "fpn", "out_channels": 8, "taps": ("C1", "C2")}, "a.ts", {}),
        ("mobilenet_v1_025", {"head": "lraspp", "num_classes": 3}, "a.torchscript.pt", {}),
    ],
)
def test_models_of_other_kinds_are_written_too(
    tmp_path: Path, registry: Registry, name: str, options: dict[str, Any], target: str, fixed: dict[str, Any]
) -> None:
    model = with_statistics(registry.build(name, **options))
    path = registry.export(model, tmp_path / target, **fixed)
    assert [file.name for file in tmp_path.iterdir()] == [target]
    images = torch.randn(fixed.get("batch", 2), options.get("in_channels", 3), *fixed.get("size", (64, 97)))
    if target == "a.pt2":
        found = torch.export.load(path).module()(images)
    else:
        found = torch_runtimes.load_script(path)[0](images)
    expected = answers(model, images)
    agree(*(maps if isinstance(maps, dict) else {"": maps} for maps in (found, expected)))


def test_both_openvino_files_replace_older_ones(tmp_path: Path, registry: Registry) -> None:
    model = with_statistics(registry.build(TINY, features_only=True, taps=("C1",)))
    for name in ("a.xml", "a.bin"):
        (tmp_path / name).write_text("older")
    (tmp_path / "a.xml").chmod(0o640)
    registry.export(model, tmp_path / "a.xml")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.bin", "a.xml"]
    assert (tmp_path / "a.xml").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "a.bin").stat().st_size >= 4 * sum(parameter.numel() for parameter in model.parameters()) // 2
    images = torch.randn(1, 3, 40, 30)
    agree(registry.compile(tmp_path / "a.xml", "openvino")(images), answers(model, images))


def shifted(self: Any, image: Tensor) -> Any:
    return {name: feature + 1 for name, feature in self.model(image).items()}


def cropped(self: Any, image: Tensor) -> Any:
    return {name: feature[:, :, 1:] for name, feature in self.model(image).items()}


def nothing(self: Any, image: Tensor) -> Any:
    return {name: feature * float("nan") for name, feature in self.model(image).items()}


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            shifted,
            r"its output 'C2' differs from the model's by 1, with values up to [0-9.]+; set a fixed size",
        ),
        (nothing, r"its output 'C2' differs from the model's by nan, with values up to [0-9.]+; set a fixed size"),
        (cropped, r"its output 'C2' is \(1, 12, 56, 41\), not \(1, 12, 57, 41\); set a fixed size"),
    ],
)
def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path,
    registry: Registry,
    tiny: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    forward: Callable[..., Any],
    message: str,
) -> None:
    (tmp_path / "a.pt2").write_text("older")
    monkeypatch.setattr(torch_runtimes.NamedInput, "forward", forward)
    with pytest.raises(ExportError, match=rf"'tiny': for images \(1, 3, 225, 161\) {message}"):
        registry.export(tiny, tmp_path / "a.pt2")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.pt2", "older")]


@pytest.mark.parametrize("lost", ["featuretap.name", "featuretap.signature"])
def test_a_file_that_lacks_metadata_is_not_kept(
    tmp_path: Path, registry: Registry, tiny: nn.Module, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    load = torch_runtimes.load_script

    def loaded(path: Path) -> Any:
        module, metadata = load(path)
        return module, {name: value for name, value in metadata.items() if name != lost}

    monkeypatch.setattr(torch_runtimes, "load_script", loaded)
    with pytest.raises(ExportError, match=f"^the written torchscript file lacks metadata: {lost}$"):
        registry.export(tiny, tmp_path / "a.ts")
    assert list(tmp_path.iterdir()) == []


def refused(registry: Registry, model: nn.Module, error: type[FeaturetapError], message: str, *asked: Any) -> None:
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        registry.export(model, *asked)


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("a.onnx", "onxn", r"^no format named 'onxn'; did you mean 'onnx'\?$"),
        (
            "a.onnx",
            "coreml",
            r"^no format named 'coreml'; available formats: onnx, openvino, torch-export, aot, torchscript$",
        ),
        (
            "a.tflite",
            None,
            r"^'a.tflite' has no suffix of an export format; use one of \.onnx \(onnx\), \.xml \(openvino\), ",
        ),
        ("a.onnx", "openvino", r"^'a\.onnx' does not match the format 'openvino'; use a name that ends in \.xml$"),
        ("a.pt", "torchscript", r"^'a\.pt' .* 'torchscript'; .* ends in \.torchscript or \.ts or \.torchscript\.pt$"),
    ],
)
def test_a_format_is_known_by_name_and_ending(
    tmp_path: Path, registry: Registry, tiny: nn.Module, name: str, form: str | None, message: str
) -> None:
    refused(registry, tiny, OptionError, message, tmp_path / name, form)


def test_targets_that_cannot_be_written_are_refused(tmp_path: Path, registry: Registry, tiny: nn.Module) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "a.ts").mkdir()
    for name, reason in {
        "missing/a.ts": "No such file or directory",
        "file/a.ts": "Not a directory",
        "a.ts": "it exists and is not a file",
    }.items():
        refused(registry, tiny, ExportError, f"^cannot write '{tmp_path}/{name}': {reason}$", tmp_path / name)


def test_missing_packages_are_named_before_any_work(
    tmp_path: Path, registry: Registry, tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featuretap.support.extras.find_spec", lambda name: None)
    for name, message in {
        "a.onnx": r"^exporting to onnx needs onnx, onnxruntime; run pip install 'featuretap\[onnxruntime\]'$",
        "a.xml": r"^exporting to openvino needs onnx, openvino; run pip install 'featuretap\[openvino\]'$",
    }.items():
        refused(registry, tiny, MissingExtraError, message, tmp_path / name)


def test_models_that_cannot_be_exported_are_refused(tmp_path: Path, registry: Registry, tiny: nn.Module) -> None:
    message = "^Linear has no description; registry.export writes models that registry.build or registry.load"
    refused(registry, nn.Linear(1, 1), OptionError, message, tmp_path / "a.onnx")
    vit = registry.build("timm/vit_tiny_patch16_224", features_only=True)
    message = r"for images of any size \(.*\); set a fixed size, such as size=\(224, 224\)$"
    refused(registry, vit, ExportError, message, tmp_path / "a.onnx")
    message = r"^cannot export 'timm/vit_tiny_patch16_224' as torchscript \(.*\); the formats torch-export and"
    with pytest.raises(ExportError, match=message):
        registry.export(vit, tmp_path / "a.ts", size=(224, 224))
    with pytest.raises(ExportError, match=r"^cannot export 'timm/vit_tiny_patch16_224' \(.*64.*224.*\)$"):
        registry.export(vit, tmp_path / "a.onnx", size=(64, 64))
    message = (
        r"^the runtime 'onnxruntime' takes models in float32, but the model is torch.float16; use model.float\(\)$"
    )
    refused(registry, registry.build(TINY, features_only=True).half(), OptionError, message, tmp_path / "a.onnx")
    detector = registry.build("mobilenet_v3_small", head="retinanet", num_classes=3)
    message = "^openvino files do not support the detector 'retinanet'; export it as onnx "
    refused(registry, detector, HeadError, message, tmp_path / "a.xml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.ts", "a.pt2", "a.onnx"])
def test_a_full_disk_is_an_error_that_leaves_what_was_there(registry: Registry, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("older")
    stem = registry.build("mobilenet_v1_025", features_only=True, taps=("C1",))
    size = (32, 32) if name == "a.pt2" else None
    with pytest.raises(ExportError, match="File too large"), full_disk(300):
        registry.export(stem, tmp_path / name, size=size)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "older")]
