"""INT8 models: agreement with float32, metadata of the files, and no partial file after a failure."""

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from skimage import data
from support.oracles import with_statistics
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import DataError, MissingExtraError, OptionError
from featuretap.registry.specs import RE, RE6, BackboneSpec, Conv, Separable
from featuretap.runtimes.agreement import measure_agreement
from featuretap.runtimes.quantization import calibrated_model
from featuretap.runtimes.quantization import images as quantization_images
from featuretap.runtimes.quantization.quantize import QUANTIZED, quantize
from featuretap.runtimes.quantization.report import Report

TINY = BackboneSpec("tiny", stages=((Conv(3, 8, RE),), (Separable(12, RE6), Conv(1, 20, RE))))
SIZE = (64, 80)


def written_crops(folder: Path, photographs: list[np.ndarray], count: int, seed: int = 0) -> Path:
    """Write square crops of the photographs, taking each photograph in turn."""
    folder.mkdir()
    chosen = random.Random(seed)
    for number in range(count):
        photograph = Image.fromarray(photographs[number % len(photographs)])
        side = round(min(photograph.size) * chosen.uniform(0.4, 1))
        left, top = chosen.randint(0, photograph.width - side), chosen.randint(0, photograph.height - side)
        photograph.crop((left, top, left + side, top + side)).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fifteen crops of photographs and one file that is not an image."""
    folder = written_crops(tmp_path_factory.mktemp("photographs") / "cuts", [data.chelsea(), data.rocket()], 15)
    (folder / "000.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def tiny(registry: Registry) -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(registry.build(TINY, features_only=True)).train()


@pytest.fixture(scope="module")
def made(registry: Registry, tiny: nn.Module, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return quantize(registry, tiny, tmp_path_factory.mktemp("made") / "tiny.onnx", [images], threads=1)


def test_the_file_opens_as_a_model_that_returns_nearly_the_same_for_any_number_and_size(
    registry: Registry, tiny: nn.Module, made: Report
) -> None:
    compiled = registry.compile(made.path)
    assert compiled.taps == tiny.taps
    assert compiled.description.name == "tiny"
    assert tiny.training
    tiny.eval()
    cup = registry.transforms(tiny)(Image.fromarray(data.coffee()))
    for count, *size in ((1, 224, 224), (3, 97, 161), (2, 32, 32)):
        batch = nn.functional.interpolate(cup[None].expand(count, -1, -1, -1), size, mode="area")
        with torch.no_grad():
            expected = tiny(batch)
        for name, values in compiled(batch).items():
            assert values.shape == expected[name].shape
            assert 0 < (values - expected[name]).norm() < 0.3 * expected[name].norm()
    tiny.train()


def test_the_file_describes_its_quantisation(made: Report) -> None:
    said = {prop.key: prop.value for prop in onnx.load(made.path).metadata_props}
    assert json.loads(said[QUANTIZED]) == {
        "format": "QDQ",
        "weights": "int8 per channel, rounded with error compensation (GPTQ)",
        "activations": "uint8",
        "ranges": "smallest error of the outputs",
        "float32": "up to the last map at stride 2 with the fewest channels",
        "images": 12,
    }
    assert {"featuretap.name", "featuretap.preprocessing", "featuretap.signature"} <= set(said)


def test_each_output_channel_of_the_weights_has_a_scale_of_its_own(made: Report, tiny: nn.Module) -> None:
    graph = onnx.load(made.path).graph
    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in graph.initializer}
    weights = [
        [constants[name] for name in node.input]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and constants.get(node.input[0], np.empty(0)).ndim == 4
    ]
    # The stem is kept in float32.
    assert len(weights) == sum(isinstance(module, nn.Conv2d) for module in tiny.modules()) - 1
    for values, scales, zeros in weights:
        assert (values.dtype, scales.shape) == (np.int8, (len(values),))
        assert len(set(scales.tolist())) > 1
        assert set(zeros.tolist()) == {0}
        assert np.abs(values.astype(int)).max() <= 127


def test_the_report_compares_on_images_that_were_not_calibrated_on(made: Report, images: Path) -> None:
    # The unreadable file is the first of sixteen, and every fifth image is held out.
    assert (made.calibrated, made.evaluated, made.held_back) == (12, ["003.png", "008.png", "013.png"], True)
    assert made.bad == {
        "000.jpg": f"{str(images / '000.jpg')!r} is not an image that Pillow can read; "
        "use a JPEG, PNG or other image file"
    }
    assert list(made.agreement) == ["C1", "C2"]
    assert all(near.cosine > 0.98 and near.error < 0.2 and near.top1 is None for near in made.agreement.values())
    assert made.bytes_after == made.path.stat().st_size
    assert (made.shape, list(made.timings)) == ((1, 3, 224, 224), ["float32", "int8"])
    assert made.timings["float32"].ratio == 1
    written = json.loads(json.dumps(made.as_json()))
    assert written["agreement"]["C2"]["cosine"] == made.agreement["C2"].cosine


def test_the_steps_of_quantising_are_logged(
    registry: Registry, tiny: nn.Module, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="featuretap"):
        quantize(registry, tiny, tmp_path / "tiny.onnx", [images], threads=1)
    assert [line.partition(",")[0] for line in caplog.messages] == [
        "writing onnx",
        "comparing onnx with the model",
        "reading images",
        "measuring ranges",
        "rounding weights",
        "comparing with float32",
        "timing",
    ]


def test_other_images_can_be_evaluated_on_and_one_size_be_fixed(
    registry: Registry, images: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = with_statistics(registry.build(TINY, features_only=True, in_channels=1))
    evaluated = written_crops(tmp_path / "others", [data.coffee()], 2)
    target = tmp_path / "model.onnx"
    report = quantize(
        registry, model, target, [images / "001.png", images / "002.png"], evaluate_on=[evaluated], size=SIZE, threads=1
    )
    assert (report.calibrated, report.evaluated, report.held_back) == (2, ["000.png", "001.png"], False)
    assert report.shape == (1, 1, *SIZE)
    assert all(near.cosine > 0.9 for near in report.agreement.values())
    assert registry.compile(target)(torch.randn(2, 1, *SIZE))["C2"].shape == (2, 20, 16, 20)


def test_agreement_is_that_of_vectors() -> None:
    expected = {"logits": torch.tensor([[3.0, 4.0]])}
    pairs = [(expected, {"logits": torch.tensor([[6.0, 8.0]])}), (expected, {"logits": torch.tensor([[4.0, -3.0]])})]
    near = measure_agreement(pairs)["logits"]
    assert near.cosine == pytest.approx(0.5)
    assert near.error == pytest.approx((1 + 50**0.5 / 5) / 2)
    assert near.top1 == 0.5


def test_very_many_images_are_sampled_evenly(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization_images, "MAXIMUM_CALIBRATED", 3)
    monkeypatch.setattr(quantization_images, "MAXIMUM_COMPARED", 3)
    taken, evaluated = quantization_images.split_images([images], [])
    assert [file.name for file in taken] == ["000.jpg", "004.png", "009.png"]
    assert [file.name for file in evaluated] == ["003.png", "008.png", "013.png"]


def test_a_pretrained_classifier_agrees_with_itself_on_photographs_that_it_was_not_calibrated_on(
    registry: Registry, official_weights: Path, tmp_path: Path
) -> None:
    model = registry.build("mobilenet_v2", pretrained=official_weights)
    calibrated = written_crops(tmp_path / "calibrated", [data.chelsea(), data.rocket(), data.retina()], 12)
    evaluated = written_crops(tmp_path / "evaluated", [data.coffee(), data.astronaut()], 12)
    report = quantize(
        registry, model, tmp_path / "v2.onnx", [calibrated], evaluate_on=[evaluated], size=(224, 224), threads=1
    )
    near = report.agreement["logits"]
    assert near.cosine > 0.96
    assert near.error < 0.3
    assert near.top1 is not None
    assert near.top1 >= 0.6
    assert report.bytes_after < 0.3 * report.bytes_before


@pytest.mark.parametrize("step", ["calibrate", "measure_agreement"])
def test_an_interrupted_quantisation_leaves_the_old_file_and_nothing_else(
    registry: Registry,
    tiny: nn.Module,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    target, scratch = tmp_path / "kept" / "tiny.onnx", tmp_path / "scratch"
    target.parent.mkdir()
    scratch.mkdir()
    target.write_bytes(b"of before")
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrated_model, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize(registry, tiny, target, [images])
    assert target.read_bytes() == b"of before"
    assert [*target.parent.iterdir(), *scratch.iterdir()] == [target]


Prepare = Callable[[Registry, Path, Path], object]


def built(registry: Registry, name: str = "mobilenet_v3_small", **options: object) -> nn.Module:
    return registry.build(name, **{"features_only": True, "taps": ("C1",), **options})


REFUSED: dict[str, tuple[type[Exception], Prepare, str]] = {
    "nothing but early layers": (
        OptionError,
        lambda registry, images, folder: quantize(
            registry, built(registry), folder / "model.onnx", [images / "001.png"], evaluate_on=[images / "002.png"]
        ),
        "cannot quantize 'mobilenet_v3_small': it ends before the first layer that runs in integers; export it in "
        "float32 with registry.export",
    ),
    "another ending": (
        OptionError,
        lambda registry, images, folder: quantize(registry, built(registry), folder / "model.xml", [images]),
        "model.xml', use a name that ends in .onnx",
    ),
    "too few images": (
        DataError,
        lambda registry, images, folder: quantize(
            registry, built(registry), folder / "model.onnx", [images / "001.png", images / "002.png"]
        ),
        "2 images are too few to calibrate on some and compare on the rest; use at least 10, or separate images to "
        "compare on",
    ),
    "the same images": (
        DataError,
        lambda registry, images, folder: quantize(
            registry, built(registry), folder / "model.onnx", [images], evaluate_on=[images / "001.png"]
        ),
        "all images to compare on are also calibration images; use other images to compare on",
    ),
    "no images that can be read": (
        DataError,
        lambda registry, images, folder: quantize(
            registry, built(registry), folder / "model.onnx", [images / "000.jpg"], evaluate_on=[images / "001.png"]
        ),
        "cannot read any of the 1 images to calibrate on: ",
    ),
    "half of the numbers": (
        OptionError,
        lambda registry, images, folder: quantize(registry, built(registry).half(), folder / "model.onnx", [images]),
        "the runtime 'onnxruntime' takes models in float32, but the model is torch.float16; use model.float()",
    ),
    "images that are no pictures": (
        OptionError,
        lambda registry, images, folder: quantize(
            registry, built(registry, in_channels=5), folder / "model.onnx", [images]
        ),
        "'mobilenet_v3_small' takes images with 5 channels, but image files have 1 or 3; choose another model",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_quantised_is_refused(case: str, registry: Registry, images: Path, tmp_path: Path) -> None:
    error, prepare, words = REFUSED[case]
    with pytest.raises(error) as raised:
        prepare(registry, images, tmp_path)
    assert words in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featuretap.support.extras.find_spec", lambda module: None)
    with pytest.raises(MissingExtraError) as raised:
        quantize(registry, nn.Identity(), tmp_path / "model.onnx", [])
    assert str(raised.value) == "quantization needs onnx, onnxruntime; run pip install 'featuretap[onnxruntime]'"
