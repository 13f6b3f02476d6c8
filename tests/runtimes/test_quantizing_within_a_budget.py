"""An accuracy budget: which layers are kept in float32 to meet it, and how the report and the file record it."""

import json
import random
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image
from skimage import data
from support.data_sets import mask, picture
from support.oracles import with_statistics
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import DataError, ExportError, HeadError, MissingExtraError, OptionError
from featuretap.registry.specs import RE, RE6, BackboneSpec, Conv, Separable
from featuretap.runtimes.quantization import quantize as quantization
from featuretap.runtimes.quantization.budget import Budget, Score, select_layers
from featuretap.runtimes.quantization.quantize import QUANTIZED, quantize
from featuretap.support.progress import log_steps
from featuretap.workflows.measuring.quantization import make_evaluation

TINY = BackboneSpec("tiny", stages=((Conv(3, 8, RE),), (Separable(12, RE6), Conv(1, 20, RE))))
SIZE = (48, 48)


@pytest.fixture(scope="module", autouse=True)
def timed_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "ROUNDS", 1)
        patch.setattr(quantization, "WARM_UP", 0)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, cat, chosen = tmp_path_factory.mktemp("images"), Image.fromarray(data.chelsea()), random.Random(0)
    for number in range(10):
        left, top = chosen.randint(0, 200), chosen.randint(0, 100)
        cat.crop((left, top, left + 100, top + 100)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def tiny(registry: Registry) -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(registry.build(TINY, features_only=True))


@pytest.fixture(scope="module")
def classifier(registry: Registry, images: Path) -> nn.Module:
    """A randomly initialized classifier that predicts each of its classes for some image."""
    torch.manual_seed(0)
    model = with_statistics(registry.build("mobilenet_v1_025", num_classes=3, taps=("C1",))).eval()
    transform = registry.transforms(model)
    batch = torch.stack([transform(Image.open(path)) for path in sorted(images.iterdir())])
    with torch.no_grad():
        model.head.logits.bias -= model(batch).mean(0)
    return model


@pytest.fixture(scope="module")
def labelled(registry: Registry, classifier: nn.Module, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder whose labels are the predictions of the float32 classifier, so that its accuracy is 100 %."""
    folder, transform = tmp_path_factory.mktemp("labelled"), registry.transforms(classifier)
    for part in ("train", "val"):
        for label in range(3):
            (folder / part / str(label)).mkdir(parents=True)
    for number, path in enumerate(sorted(images.iterdir())):
        picture = Image.open(path)
        with torch.no_grad():
            label = int(classifier(transform(picture)[None]).argmax())
        picture.save(folder / ("train" if number < 2 else "val") / str(label) / path.name)
    return folder


def weights_in_integers(path: Path) -> set[str]:
    """Return the layers whose weights are stored as INT8 in a file."""
    graph = onnx.load(path).graph
    constants = {constant.name: constant for constant in graph.initializer}
    read = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    return {
        node.input[0].partition(".weight")[0]
        for node in read
        if constants[node.input[0]].data_type == onnx.TensorProto.INT8
    }


def described(path: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads({prop.key: prop.value for prop in onnx.load(path).metadata_props}[QUANTIZED])
    return said


LAYERS = ("a", "b", "c", "d", "e")
ERRORS = {"a": 1.0, "b": 4.0, "c": 2.0, "d": 5.0, "e": 3.0}
"""Of each layer that is in integers."""


def sum_of_errors(in_float: Collection[str]) -> float:
    return sum(error for layer, error in ERRORS.items() if layer not in in_float)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(15, ""), (14, "d"), (10, "d"), (9, "db"), (3, "dbe"), (2, "dbec"), (0.5, "dbeca")],
)
def test_the_smallest_number_of_sensitive_layers_stays_in_float(limit: float, kept: str) -> None:
    selected = select_layers(LAYERS, limit, "relative error", sum_of_errors, sum_of_errors, log_steps)
    assert "".join(selected.in_float) == kept
    assert selected.loss == sum_of_errors(kept)
    assert selected.sensitivity == {layer: ERRORS[layer] for layer in LAYERS}
    assert "".join(selected.sensitivity) == "dbeca"


def test_the_loss_is_measured_a_few_times_only() -> None:
    layers = [f"layer {number}" for number in range(100)]
    measured = []

    def loss_of(in_float: Collection[str]) -> float:
        measured.append(len(in_float))
        return 100 - len(in_float)

    selected = select_layers(layers, 37, "points of accuracy", lambda in_float: 0.0, loss_of, log_steps)
    assert len(selected.in_float) == 63
    assert len(measured) <= 8


def test_a_loss_that_rises_with_more_layers_in_float_is_never_taken_for_one_that_holds() -> None:
    losses = [0.9, 0.2, 0.6, 0.8, 0.7, 0.9]
    with pytest.raises(ExportError) as raised:
        select_layers(
            LAYERS, 0.5, "points of accuracy", sum_of_errors, lambda in_float: losses[len(in_float)], log_steps
        )
    assert str(raised.value) == (
        "the budget of 0.5 cannot be met: the smallest loss is 0.8 (points of accuracy), with 3 of 5 layers in "
        "float32; set a larger budget="
    )


def test_a_budget_that_holds_at_once_leaves_no_layer_in_float(
    registry: Registry, tiny: nn.Module, images: Path, tmp_path: Path
) -> None:
    report = quantize(registry, tiny, tmp_path / "a.onnx", [images], size=SIZE, threads=1, budget=5)
    worst = max(near.error for near in report.agreement.values())
    assert report.budget == Budget("relative error", 5, pytest.approx(worst))
    assert (report.in_float32, report.bytes_added, described(report.path).get("in_float32")) == ((), 0, None)
    assert set(report.sensitivity) == weights_in_integers(report.path)
    assert all(error > 0 for error in report.sensitivity.values())


def test_a_tight_budget_leaves_the_most_sensitive_layers_in_float(
    registry: Registry, tiny: nn.Module, images: Path, tmp_path: Path
) -> None:
    free = quantize(registry, tiny, tmp_path / "free.onnx", [images], size=SIZE, threads=1)
    worst = max(near.error for near in free.agreement.values())
    report = quantize(registry, tiny, tmp_path / "tight.onnx", [images], size=SIZE, threads=1, budget=0.8 * worst)
    assert report.budget is not None
    assert max(near.error for near in report.agreement.values()) == pytest.approx(report.budget.loss)
    assert report.budget.loss <= 0.8 * worst
    count = len(report.in_float32)
    assert 0 < count < len(report.sensitivity)
    assert list(report.in_float32) == list(report.sensitivity)[:count]
    assert weights_in_integers(report.path) == set(report.sensitivity) - set(report.in_float32)
    assert described(report.path)["in_float32"] == list(report.in_float32)
    assert report.bytes_added == report.bytes_after - free.bytes_after - grown_metadata(free.path, report.path)
    assert (free.budget, free.sensitivity) == (None, {})
    written = json.loads(json.dumps(report.as_json()))
    assert written["in_float32"] == {"layers": list(report.in_float32), "bytes_added": report.bytes_added}
    assert written["budget"]["loss"] == report.budget.loss
    assert written["sensitivity"] == report.sensitivity


def grown_metadata(before: Path, after: Path) -> int:
    """Return how many bytes the metadata has grown between two files."""
    sizes = [sum(len(prop.value) for prop in onnx.load(path).metadata_props) for path in (before, after)]
    return sizes[1] - sizes[0]


def test_a_budget_on_labelled_images_limits_the_points_that_are_lost(
    registry: Registry, classifier: nn.Module, images: Path, labelled: Path, tmp_path: Path
) -> None:
    report = registry.quantize(classifier, tmp_path / "a.onnx", images, threads=1, budget=100, data=labelled)
    assert report.budget is not None
    assert (report.budget.measure, report.budget.limit) == ("points of accuracy", 100)
    # The validation part has eight images.
    assert report.budget.loss in [12.5 * wrong for wrong in range(9)]
    assert report.in_float32 == ()
    assert (report.budget.metric, report.budget.images) == ("accuracy", 8)
    assert report.budget.scores["float32"] - report.budget.scores["int8"] == report.budget.loss


def test_points_are_those_of_the_file_against_the_one_in_float32(
    registry: Registry, tiny: nn.Module, images: Path, tmp_path: Path
) -> None:
    """Use a metric that improves by two points for each layer kept in float32."""
    layers = 0
    measured: list[int] = []

    def evaluate(path: Path) -> Score:
        nonlocal layers
        in_integers = len(weights_in_integers(path))
        layers = max(layers, in_integers)
        measured.append(in_integers)
        return Score("mIoU", 90 - 2 * in_integers, images=7)

    report = quantize(
        registry, tiny, tmp_path / "a.onnx", [images], size=SIZE, threads=1, budget=4.5, evaluate=evaluate
    )
    assert measured[:2] == [0, layers]
    assert report.budget == Budget("points of mIoU", 4.5, 4, "mIoU", {"float32": 90, "int8": 86}, 7)
    assert len(report.in_float32) == layers - 2
    assert len(weights_in_integers(report.path)) == 2


def test_a_budget_that_cannot_hold_is_refused_and_nothing_is_written(
    registry: Registry, tiny: nn.Module, images: Path, tmp_path: Path
) -> None:
    target = tmp_path / "a.onnx"
    target.write_bytes(b"of before")
    scores = iter((90.0, *[81.0] * 9))
    with pytest.raises(
        ExportError, match=r"the budget of 0\.5 cannot be met: the smallest loss is 9 \(points of mAP\), with 0 of "
    ):
        quantize(
            registry,
            tiny,
            target,
            [images],
            size=SIZE,
            threads=1,
            budget=0.5,
            evaluate=lambda path: Score("mAP", next(scores), images=7),
        )
    assert target.read_bytes() == b"of before"
    assert list(tmp_path.iterdir()) == [target]


Prepare = Callable[[Registry, nn.Module, nn.Module, Path, Path], object]

INVALID = (
    "the budget must be a positive number: a relative error, or points of the metric if labeled images are given; "
    "got {}"
)

REFUSED: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "zero": (OptionError, {"budget": 0}, INVALID.format("0")),
    "below zero": (OptionError, {"budget": -0.5}, INVALID.format("-0.5")),
    "not a number": (OptionError, {"budget": float("nan")}, INVALID.format("nan")),
    "infinite": (OptionError, {"budget": float("inf")}, INVALID.format("inf")),
    "text": (OptionError, {"budget": "0.1"}, INVALID.format("'0.1'")),
    "labeled images alone": (
        OptionError,
        {"data": "digits"},
        "labeled images have no effect without a budget; set budget=",
    ),
    "a bare backbone": (
        HeadError,
        {"budget": 1, "data": "digits"},
        "the model is a backbone without a head; only models with a head can be evaluated",
    ),
    "data that is none": (
        DataError,
        {"budget": 1, "data": "nowhere", "head": True, "size": None},
        "no folder or data set named 'nowhere'; ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_budget_can_be_is_refused(
    case: str, registry: Registry, tiny: nn.Module, classifier: nn.Module, images: Path, tmp_path: Path
) -> None:
    error, given, message = REFUSED[case]
    options = {"size": SIZE, **given}
    model = classifier if options.pop("head", False) else tiny
    with pytest.raises(error) as raised:
        registry.quantize(model, tmp_path / "a.onnx", images, threads=1, **options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_data_that_can_be_read_in_two_ways_is_refused_without_options_of_another_command(
    registry: Registry, tmp_path: Path
) -> None:
    for number in range(4):
        for folder in ("JPEGImages", "images"):
            picture(tmp_path / "both" / folder / f"{number}.png", (4, 2))
        for folder in ("SegmentationClass", "masks"):
            mask(tmp_path / "both" / folder / f"{number}.png", [[0, 1, 1, 0], [0, 0, 1, 2]])
    model = registry.build("mobilenet_v1_025", head="lraspp", num_classes=3)
    path = registry.export(model, tmp_path / "segmenter.onnx")
    with pytest.raises(DataError) as raised:
        make_evaluation(tmp_path / "both")(path)
    assert str(raised.value).startswith(f"{str(tmp_path / 'both')!r} can be read as ")
    assert str(raised.value).endswith("; use data that `featuretap evaluate` reads without options")


def test_missing_packages_for_labelled_images_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "featuretap.support.extras.find_spec", lambda module: None if module == "accelerate" else module
    )
    with pytest.raises(MissingExtraError) as raised:
        make_evaluation("digits")
    assert str(raised.value) == ("a budget on labeled images needs accelerate; run pip install 'featuretap[train]'")
