"""Sessions compute the model's outputs from a name, checkpoint or exported file, without importing PyTorch."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.oracles import with_statistics

from featuretap.registry import Registry
from featuretap.registry.errors import ExportError, FeaturetapError, OptionError, WeightsError
from featuretap.registry.specs import Tap
from featuretap.runtimes.sessions import default_threads

NAME = "mobilenet_v3_small"
MODELS: dict[str, dict[str, Any]] = {
    "a backbone": {"features_only": True, "taps": ("C5", "C4.expansion", "C1")},
    "a classifier": {"num_classes": 5},
    "pooled features": {"num_classes": 0, "in_channels": 1},
    "a pyramid": {"head": "fpn", "out_channels": 16},
    "a segmenter": {"head": "lraspp", "num_classes": 3},
}


@pytest.fixture
def saved(registry: Registry, tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    def saved(**arguments: Any) -> tuple[Any, Path]:
        model = with_statistics(registry.build(NAME, width=0.25, **arguments)).eval()
        return model, registry.save(model, tmp_path / "model.safetensors")

    return saved


def assert_agreement(outputs: dict[str, Any], expected: Any) -> None:
    expected = {next(iter(outputs)): expected} if isinstance(expected, torch.Tensor) else expected
    assert list(outputs) == list(expected)
    for name, values in expected.items():
        assert outputs[name].dtype == np.float32
        assert outputs[name].shape == tuple(values.shape)
        assert np.abs(outputs[name] - values.numpy()).max() <= 1e-4 * float(values.abs().max())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("arguments", MODELS.values(), ids=MODELS)
def test_a_session_computes_what_the_checkpoint_of_a_model_describes(
    registry: Registry, saved: Callable[..., tuple[Any, Path]], arguments: dict[str, Any], runtime: str
) -> None:
    model, path = saved(**arguments)
    session = registry.session(path, runtime=runtime)
    images = torch.randn(3, arguments.get("in_channels", 3), 97, 131)
    with torch.no_grad():
        assert_agreement(session(images.numpy()), model(images))
    assert session.description.name == NAME
    assert session.taps == getattr(model, "taps", {})


def test_arguments_replace_those_of_the_checkpoint(registry: Registry, saved: Callable[..., tuple[Any, Path]]) -> None:
    _, path = saved(num_classes=5)
    session = registry.session(path, features_only=True, taps=("C3",), output_stride=16)
    assert session.taps == {"C3": Tap(8, 8)}
    images = torch.randn(1, 3, 64, 64)
    loaded = registry.load(path, features_only=True, taps=("C3",), output_stride=16).eval()
    with torch.no_grad():
        assert_agreement(session(images.numpy()), loaded(images))


def test_a_name_with_weights_in_timms_layout_is_a_session(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(with_statistics(registry.build(NAME)).eval(), tmp_path / "timm.safetensors", layout="timm")
    session = registry.session(NAME, pretrained=path, taps=("C2",), features_only=True)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert_agreement(session(images.numpy()), registry.load(path, features_only=True, taps=("C2",)).eval()(images))


@pytest.mark.parametrize(
    ("name", "runtime"), [("a.onnx", "onnxruntime"), ("a.onnx", "openvino"), ("a.xml", "openvino")]
)
def test_an_exported_file_is_a_session(
    registry: Registry, saved: Callable[..., tuple[Any, Path]], tmp_path: Path, name: str, runtime: str
) -> None:
    model, _ = saved(features_only=True)
    session = registry.session(registry.export(model, tmp_path / name), runtime=runtime)
    assert (session.outputs, session.taps) == (tuple(model.taps), model.taps)
    images = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        assert_agreement(session(images.numpy()), model(images))


def test_images_are_prepared_from_a_path_or_an_image(
    registry: Registry, saved: Callable[..., tuple[Any, Path]], cat: Path
) -> None:
    model, path = saved(num_classes=5)
    session = registry.session(path)
    prepared = session.prepare(cat)
    assert (prepared.shape, prepared.dtype) == ((1, 3, 224, 224), np.float32)
    with Image.open(cat) as image:
        assert np.array_equal(session.prepare(image), prepared)
        assert np.abs(prepared[0] - registry.transforms(model)(image).numpy()).max() < 1e-6
    assert session(prepared)["logits"].shape == (1, 5)


def test_classes_are_those_of_the_weights(registry: Registry, official_weights: Path, tmp_path: Path) -> None:
    session = registry.session(registry.convert(official_weights, tmp_path / "v2.safetensors"))
    assert (len(session.classes), session.classes[285]) == (1000, "Egyptian cat")


def test_one_size_and_one_number_of_images_can_be_fixed(
    registry: Registry, saved: Callable[..., tuple[Any, Path]]
) -> None:
    _, path = saved(features_only=True)
    session = registry.session(path, size=(64, 96), batch=2, threads=1)
    assert session(np.zeros((2, 3, 64, 96), np.float32))["C1"].shape == (2, 8, 32, 48)
    with pytest.raises(OptionError) as error:
        session(np.zeros((1, 3, 64, 96), np.float32))
    assert str(error.value) == "this session takes images (2, 3, 64, 96), got (1, 3, 64, 96)"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 8, 8), np.float32), r"this session takes images \(batch, 3, height, width\), got \(3, 8, 8\)"),
        (np.zeros((1, 3, 8, 8)), r"takes a float32 array of images \(N, C, H, W\), got float64$"),
        (torch.zeros(1, 3, 8, 8), r"takes a float32 array of images \(N, C, H, W\), got Tensor$"),
    ],
)
def test_images_that_it_cannot_take_are_refused(
    registry: Registry, saved: Callable[..., tuple[Any, Path]], images: Any, message: str
) -> None:
    session = registry.session(saved(features_only=True)[1])
    with pytest.raises(OptionError, match=message):
        session(images)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": "official"}, WeightsError, r"mobilenet_v2-b0353104.pth' .*PyTorch.*; .*featuretap convert "),
        ({"source": "mobilenet_v2"}, WeightsError, r"^'mobilenet_v2.imagenet1k_v1' is a .pth file, which can only"),
        (
            {"source": NAME, "pretrained": False},
            OptionError,
            r"^a session needs trained weights; set pretrained for 'mobilenet_v3_small'$",
        ),
        ({"head": "fpn"}, WeightsError, r"has a head 'classification'; .* a session needs trained weights, so"),
        (
            {"num_classes": 7},
            WeightsError,
            r"the file has 5 classes, the model 7\); a session needs trained weights, so train",
        ),
        ({"runtime": "inductor"}, OptionError, r"^the runtime 'inductor' needs PyTorch; use 'onnxruntime' or"),
        ({"threads": 0}, OptionError, r"^threads must be 1 or more, or None for the default; got 0$"),
        ({"size": 224}, OptionError, r"^size must be \(height, width\) in pixels, or None for images of any size; got"),
        (
            {"source": "timm/resnet18", "pretrained": True},
            ExportError,
            r"^only PyTorch reads the weights of 'timm/resnet18'; build it",
        ),
        (
            {"source": "absent.onnx"},
            ExportError,
            r"^no file 'absent.onnx'; write one with featuretap export NAME absent.onnx",
        ),
        (
            {"source": "a.onnx", "taps": ("C1",)},
            OptionError,
            r"^taps=\('C1',\) cannot be applied to an exported file; pass it to registry.export$",
        ),
        ({"source": "a.xml"}, OptionError, r"^the runtime 'onnxruntime' does not open .xml files; 'openvino' can$"),
    ],
)
def test_what_cannot_be_a_session_is_refused(
    saved: Callable[..., tuple[Any, Path]],
    official_weights: Path,
    arguments: dict[str, Any],
    error: type[FeaturetapError],
    message: str,
) -> None:
    registry = Registry(discover=False)
    source = arguments.pop("source", None) or saved(num_classes=5)[1]
    with pytest.raises(error, match=message):
        registry.session(official_weights if source == "official" else source, **arguments)


def test_a_head_without_nodes_needs_pytorch(registry: Registry, tmp_path: Path) -> None:
    model = registry.build(NAME, head="retinanet", width=0.25, out_channels=32, num_classes=3)
    path = registry.save(model, tmp_path / "retinanet.safetensors")
    with pytest.raises(ExportError) as error:
        registry.session(path)
    assert str(error.value).startswith("'mobilenet_v3_small' with ")
    needed = " needs PyTorch: the head 'retinanet' has no nodes; build it and use registry.compile or "
    assert str(error.value).endswith(f"{needed}registry.export")


@pytest.mark.parametrize(("stated", "threads"), [("3", 3), ("", None), ("0", None), ("many", None)])
def test_threads_follow_the_environment(monkeypatch: pytest.MonkeyPatch, stated: str, threads: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", stated)
    assert default_threads() == threads or (threads is None and default_threads() >= 1)


def imports_torch(program: str, *arguments: object) -> bool:
    """Return whether a program, run in a new process, imports PyTorch."""
    shown = f"{program}\nimport sys\nprint('torch' in sys.modules)"
    command = [sys.executable, "-c", shown, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()[-1] == "True"


CLOSING_IN_ORDER = """
import gc, signal, sys
from featuretap import registry
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
sessions = [registry.session(sys.argv[1], runtime=sys.argv[2]) for _ in range(2)]
while sessions:
    del sessions[0]
    gc.collect()
signal.raise_signal(signal.SIGUSR1)
"""


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_signals_are_handled_after_sessions_were_closed_in_the_order_of_opening(
    saved: Callable[..., tuple[Any, Path]], runtime: str
) -> None:
    _, path = saved(num_classes=2)
    command = [sys.executable, "-X", "faulthandler", "-c", CLOSING_IN_ORDER, str(path), runtime]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "handled\n")


IN_PYTHON = """
import sys
from featuretap import registry
session = registry.session(sys.argv[1], runtime=sys.argv[3])
session(session.prepare(sys.argv[2]))
"""
ON_THE_COMMAND_LINE = """
import sys
from featuretap.command_line import main
try:
    main()
except SystemExit as exit_:
    assert not exit_.code, exit_.code
"""


@pytest.mark.parametrize("runtime", ["onnxruntime", "auto"])
def test_a_session_imports_no_pytorch(saved: Callable[..., tuple[Any, Path]], cat: Path, runtime: str) -> None:
    _, path = saved(num_classes=5)
    assert not imports_torch(IN_PYTHON, path, cat, runtime)


@pytest.mark.parametrize("command", ["predict", "taps"])
def test_commands_on_images_import_no_pytorch(
    saved: Callable[..., tuple[Any, Path]], cat: Path, tmp_path: Path, command: str
) -> None:
    arguments = (command, cat, "--weights", saved(num_classes=5)[1], "--out", tmp_path / "pictures.png")
    assert not imports_torch(ON_THE_COMMAND_LINE, *arguments)


def test_the_proof_that_pytorch_is_not_imported_can_fail(saved: Callable[..., tuple[Any, Path]], cat: Path) -> None:
    assert imports_torch(ON_THE_COMMAND_LINE, "predict", cat, "--weights", saved(num_classes=5)[1], "--torch")


def test_export_writes_without_pytorch_the_bytes_that_it_writes_with_it(
    saved: Callable[..., tuple[Any, Path]], run: Callable[..., Any], tmp_path: Path
) -> None:
    _, path = saved(num_classes=5)
    with_torch, without = tmp_path / "with.onnx", tmp_path / "without.onnx"
    assert not imports_torch(ON_THE_COMMAND_LINE, "export", path, without, "--taps", "C5,C2")
    assert run("export", path, with_torch, "--taps", "C5,C2", "--torch").out == f"saved: {with_torch}\n"
    assert without.read_bytes() == with_torch.read_bytes()


def test_export_writes_openvino_without_pytorch(
    registry: Registry, saved: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    model, path = saved(features_only=True)
    assert not imports_torch(ON_THE_COMMAND_LINE, "export", path, tmp_path / "a.xml", "--size", "64x96")
    session = registry.session(tmp_path / "a.xml", runtime="openvino")
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert_agreement(session(images.numpy()), model(images))


def test_an_exported_file_of_broken_weights_is_not_kept(
    registry: Registry, saved: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    model, _ = saved(features_only=True)
    model.stages.C1[0].conv.weight.data[0] = torch.nan
    path = registry.save(model, tmp_path / "broken.safetensors")
    with pytest.raises(ExportError) as error:
        registry.export(path, tmp_path / "a.onnx")
    assert str(error.value) == (
        "cannot export 'mobilenet_v3_small' with width=0.25 as onnx: the outputs are not finite; look for NaN in the "
        "weights with featuretap inspect --finite"
    )
    assert not (tmp_path / "a.onnx").exists()


def test_formats_of_pytorch_are_written_from_models(
    registry: Registry, saved: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    with pytest.raises(OptionError) as error:
        registry.export(saved(features_only=True)[1], tmp_path / "a.ts")
    written = "only PyTorch writes 'torchscript' files; load the model and export it: "
    assert str(error.value) == f"{written}registry.export(registry.load(...), ...)"
