"""Commands accept exported and quantized files like weights files, or refuse them in one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from skimage import data
from support import Completed
from support.data_sets import a_box, coco, mask
from support.oracles import with_statistics
from support.training_runs import coloured_folder
from torch import nn

from featuretap import registry
from featuretap.registry.errors import ExportError, OptionError
from featuretap.registry.specs import RE, BackboneSpec, Conv
from featuretap.runtimes.quantization import quantize as quantization
from featuretap.workflows.extraction.opening import open_extractor
from featuretap.workflows.measuring import comparing
from featuretap.workflows.training.run import evaluate

Run = Callable[..., Completed]

SMALLEST = "mobilenet_v1_025"
MODELS: dict[str, dict[str, Any]] = {
    "classifier": {"num_classes": 3},
    "segmenter": {"head": "lraspp", "num_classes": 2},
    # The threshold keeps all boxes, because random weights give low scores.
    "detector": {"head": "ssdlite", "num_classes": 3, "size": 64, "score_thresh": 0.01, "detections_per_img": 9},
    "backbone": {"features_only": True},
}
CLASSES = {"classifier": ("blue", "green", "red"), "segmenter": ("0", "1"), "detector": ("background", "cat", "dog")}


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = registry.build(SMALLEST, **MODELS[kind])
    with_statistics(model.backbone if kind == "detector" else model, nearly_dead=False)
    preprocessing = model.description.preprocessing
    if kind == "segmenter":
        preprocessing = replace(preprocessing, resize=64)
    model.description = replace(model.description, classes=CLASSES.get(kind, ""), preprocessing=preprocessing)
    return model.eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each model as `KIND.onnx` (INT8), `KIND-float.onnx` and `KIND.safetensors`, and images."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "images").mkdir()
    for number in range(3):
        Image.fromarray(data.chelsea()[number : number + 90, 100:200]).save(folder / "images" / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "ROUNDS", 1)
        patch.setattr(quantization, "WARM_UP", 0)
        for kind in MODELS:
            model = build(kind)
            registry.save(model, folder / f"{kind}.safetensors")
            registry.export(model, folder / f"{kind}-float.onnx")
            images = sorted((folder / "images").iterdir())
            registry.quantize(model, folder / f"{kind}.onnx", images[1:], evaluate_on=images[0], threads=1)
    return folder


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    coloured_folder(folder / "classifier", count=4)
    noise = np.random.default_rng(0)
    for number in range(4):
        pixels = noise.integers(0, 255, (8, 12, 3)).astype(np.uint8)
        for part in ("segmenter/images", "detector"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / part / f"{number}.png")
        mask(folder / "segmenter" / "masks" / f"{number}.png", noise.integers(0, 2, (8, 12)))
    names = tuple(f"{number}.png" for number in range(4))
    boxes = [a_box(number, number, [1, 1, 4 + number, 6], category=(3, 7)[number % 2]) for number in range(1, 5)]
    coco(folder / "detector" / "annotations.json", boxes, names)
    return {kind: folder / kind for kind in CLASSES}


@pytest.mark.parametrize("kind", list(CLASSES))
def test_an_exported_file_is_evaluated_as_its_model_is(files: Path, data_sets: dict[str, Path], kind: str) -> None:
    settings: dict[str, Any] = {"part": "all", "log": lambda line: None}
    opened = [registry.load(files / f"{kind}.safetensors"), registry.compile(files / f"{kind}-float.onnx")]
    exact, found = (evaluate(model, str(data_sets[kind]), **settings)[0] for model in opened)
    assert found.scores == pytest.approx(exact.scores, rel=1e-3)
    assert [each.name for each in found.per_class] == [name for name in CLASSES[kind] if name != "background"]


@pytest.mark.parametrize("kind", list(CLASSES))
def test_a_quantised_file_is_evaluated(
    run: Run, files: Path, data_sets: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    options = ("--weights", files / f"{kind}.onnx", "--part", "all", "--out", tmp_path / "out", "--json")
    ran = run("evaluate", data_sets[kind], *options)
    evaluated = json.loads(ran.out)
    assert [row["class"] for row in evaluated["per_class"]] == [name for name in CLASSES[kind] if name != "background"]
    assert {"metrics.json", "predictions.png"} <= {file.name for file in (tmp_path / "out").iterdir()}
    assert ran.status == 0


@pytest.mark.parametrize("kind", list(CLASSES))
def test_a_quantised_file_predicts_classes_by_their_names(run: Run, files: Path, kind: str) -> None:
    ran = run("predict", files / "images" / "0.png", "--weights", files / f"{kind}.onnx", "--json")
    (answer,) = json.loads(ran.out)
    assert ran.status == 0
    if kind != "detector":
        named = {entry["class"] for entry in answer["predictions"]}
        assert named <= set(CLASSES[kind])
        assert named


def test_the_maps_of_a_quantised_backbone_are_drawn_and_extracted(run: Run, files: Path, tmp_path: Path) -> None:
    weights, image = files / "backbone.onnx", files / "images" / "0.png"
    ran = run("taps", image, "--weights", weights, "--taps", "C3,C1", "--size", 64, "--out", tmp_path / "taps.png")
    assert [line.split()[0] for line in ran.out.splitlines()[3:5]] == ["C3", "C1"]
    ran = run(
        "extract", files / "images", "--weights", weights, "--taps", "C5", "--pool", "--out", tmp_path / "features"
    )
    assert (ran.status, ran.err) == (0, "")
    features = load_file(tmp_path / "features" / "features-00000-of-00001.safetensors")["C5"]
    session = registry.session(weights)
    expected = session(session.prepare(image))["C5"].mean((2, 3))
    assert features.shape == (3, 256)
    assert features[0] == pytest.approx(expected[0], rel=1e-3, abs=1e-3)


def test_files_are_timed_beside_one_another(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "measure_limit", lambda: 1.5e9)
    monkeypatch.setattr(comparing, "PAUSE", 0.001)
    paths = [str(files / f"{kind}.onnx") for kind in MODELS]
    ran = run("bench", *paths, SMALLEST, "--size", "64", "--rounds", 1, "--json")
    measured = json.loads(ran.out)["measurements"]
    assert [(each["name"], each["by"]) for each in measured] == [
        *((path, "onnxruntime") for path in paths),
        (SMALLEST, "eager"),
    ]
    counts = [(each["macs"], each["parameters"]) for each in measured]
    for kind, count in zip(MODELS, counts, strict=False):
        spec = registry.spec(SMALLEST, **MODELS[kind])
        assert count == (spec.macs(64, 64), spec.parameters)
    assert (ran.status, ran.err) == (0, "")


def test_a_detector_is_counted_at_the_size_that_it_resizes_images_to(files: Path) -> None:
    baseline = comparing.open_file(str(files / "detector.onnx"), "onnxruntime")
    assert baseline.macs((500, 300)) == baseline.macs((64, 64)) == baseline.spec.macs(64, 64)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (BackboneSpec("tiny", stages=((Conv(3, 8, RE),),)), "no backbone named 'tiny'"),
        (BackboneSpec(SMALLEST, stages=((Conv(3, 8, RE),),)), f"the registry's '{SMALLEST}' is a different network"),
    ],
    ids=["without a name", "with the name of another"],
)
def test_a_file_of_a_backbone_that_is_not_in_the_registry_is_not_timed(
    tmp_path: Path, spec: BackboneSpec, reason: str
) -> None:
    path = str(registry.export(registry.build(spec, features_only=True, taps=("C1",)), tmp_path / "a.onnx"))
    with pytest.raises(ExportError) as raised:
        comparing.open_file(path, "onnxruntime")
    assert str(raised.value) == (
        f"cannot count the multiply-adds of {path!r} ({reason}); install the plugin that provides the model, or "
        "time the file with your own code"
    )


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "maps of a classifier": (
        ("taps", "IMAGE", "--weights", "FILES/classifier.onnx"),
        "'FILES/classifier.onnx' returns logits, not the feature maps of a backbone; export the model with "
        "--features-only",
    ),
    "features of a detector": (
        ("extract", "IMAGE", "--out", "features", "--weights", "FILES/detector.onnx"),
        "'FILES/detector.onnx' returns boxes, scores, labels, num_detections, not the feature maps of a backbone; "
        "export the model with --features-only",
    ),
    "a tap that is not in the file": (
        ("taps", "IMAGE", "--weights", "FILES/backbone.onnx", "--taps", "C4.expansion"),
        "'FILES/backbone.onnx' has no tap 'C4.expansion'; its taps are C1, C2, C3, C4, C5",
    ),
    "PyTorch": (
        ("predict", "IMAGE", "--weights", "FILES/classifier.onnx", "--torch"),
        "PyTorch cannot run the exported file 'FILES/classifier.onnx'; omit --torch, or use the weights file that "
        "it was exported from",
    ),
    "a name beside the file": (
        ("extract", "IMAGE", "--out", "features", "--weights", "FILES/backbone.onnx", "--model", "mobilenet_v2"),
        "the exported file 'FILES/backbone.onnx' already defines the model; omit --model",
    ),
    "a name in an evaluation": (
        ("evaluate", "digits", "--weights", "FILES/classifier.onnx", "--model", "mobilenet_v2"),
        "the exported file 'FILES/classifier.onnx' already defines the model; omit --model",
    ),
    "one head of a file": (
        ("evaluate", "digits", "--weights", "FILES/classifier.onnx", "--head", "road"),
        "the exported file 'FILES/classifier.onnx' always computes all heads; leave --head out, or pass the weights "
        "file that it was exported from",
    ),
    "an evaluated backbone": (
        ("evaluate", "digits", "--weights", "FILES/backbone.onnx"),
        "'FILES/backbone.onnx' is a backbone without a head; only models with a head can be evaluated",
    ),
    "options of a file": (
        ("bench", "FILES/classifier.onnx", "--option", "width=0.5"),
        "options and other libraries only apply to backbone names, and 'FILES/classifier.onnx' is a file; omit them",
    ),
    "a file that is absent": (
        ("bench", "absent.onnx"),
        "no file 'absent.onnx'; write one with featuretap export NAME absent.onnx",
    ),
    "an exported file as weights": (
        ("inspect", "FILES/classifier.onnx"),
        "'FILES/classifier.onnx' is not a weights file: it is an exported model, which registry.session opens; use "
        "the weights file that it was exported from",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_exported_file_cannot_do_is_one_line(
    case: str, run: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = REFUSED[case]
    places = {"IMAGE": str(files / "images" / "0.png")}
    ran = run(*(places.get(argument, argument.replace("FILES", str(files))) for argument in arguments))
    assert (ran.status, ran.out, ran.err) == (2, "", f"featuretap: {message.replace('FILES', str(files))}\n")
    assert not list(tmp_path.iterdir())


def test_one_of_several_heads_is_evaluated_from_the_weights_file(run: Run, tmp_path: Path) -> None:
    model = registry.build(SMALLEST, head=("classification", "lraspp"))
    path = registry.export(model, tmp_path / "several.onnx")
    ran = run("evaluate", "digits", "--weights", path)
    assert (ran.status, ran.out, ran.err) == (
        2,
        "",
        f"featuretap: {str(path)!r} is a model with several heads: classification, lraspp; pass the weights file "
        "that it was exported from, with --head NAME\n",
    )


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"batch": 2}, "has a fixed batch size of 2, but the last batch may be smaller; export it for any batch size"),
        (
            {"size": (64, 48)},
            "has a fixed image size of 64x48, but evaluation uses other sizes; export it for any size",
        ),
    ],
    ids=["batch", "size"],
)
def test_files_of_another_number_or_size_of_images_are_not_evaluated(
    data_sets: dict[str, Path], tmp_path: Path, fixed: dict[str, Any], message: str
) -> None:
    compiled = registry.compile(registry.export(build("classifier"), tmp_path / "a.onnx", **fixed))
    with pytest.raises(OptionError) as raised:
        evaluate(compiled, str(data_sets["classifier"]), origin="'a.onnx'")
    assert str(raised.value) == f"'a.onnx' {message}"


def test_a_file_for_one_image_of_the_weights_size_is_evaluated(data_sets: dict[str, Path], tmp_path: Path) -> None:
    path = registry.export(build("classifier"), tmp_path / "a.onnx", batch=1, size=(224, 224))
    settings: dict[str, Any] = {"part": "all", "log": lambda line: None}
    metrics, *_ = evaluate(registry.compile(path), str(data_sets["classifier"]), **settings)
    assert sum(each.occurrences for each in metrics.per_class) == 12


@pytest.mark.parametrize(
    ("fixed", "size"), [({"size": (64, 48)}, (32, 32)), ({"batch": 2}, None)], ids=["size", "batch"]
)
def test_features_of_other_images_than_the_files_are_refused(
    files: Path, tmp_path: Path, fixed: dict[str, Any], size: tuple[int, int] | None
) -> None:
    path = registry.export(registry.load(files / "backbone.safetensors"), tmp_path / "a.onnx", **fixed)
    reason = "only takes images of 64x48 pixels; omit --size" if size else "batches of 2 images, and the last batch may"
    with pytest.raises(OptionError, match=reason):
        open_extractor(None, str(path), ("C5",), size)
