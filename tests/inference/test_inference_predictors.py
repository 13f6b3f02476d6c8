"""Predictors return the same predictions as PyTorch for any runtime, and do not import PyTorch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from support.package import heavy_modules_after
from torch import nn
from torch.nn import functional as F  # noqa: N812

from featuretap.registry import Registry, transforms
from featuretap.registry.errors import OptionError
from featuretap.runtimes.preparing import prepare
from featuretap.specs import Tap
from featuretap.specs.description import Description
from featuretap.specs.preprocessing import Preprocessing
from featuretap.workflows.inference.feature_maps import compute_maps
from featuretap.workflows.inference.modules import ModulePredictor
from featuretap.workflows.inference.predicting import (
    BoxPrediction,
    ClassPrediction,
    PixelPrediction,
    predict_images,
    predict_sources,
)
from featuretap.workflows.inference.predictor import Predictor
from featuretap.workflows.inference.sources import find_sources, read_ahead

NAMES = ("background", "cat", "dog")
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")


@dataclass
class Session:
    """A stand-in for the result of `registry.session` with predefined outputs."""

    description: Description
    run: Callable[[NDArray[np.float32]], dict[str, NDArray[Any]]]
    taps: Mapping[str, Tap] = field(default_factory=dict)

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        return prepare(image, self.description.preprocessing)

    def __call__(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return self.run(images)


def described(head: str, outputs: Callable[[int], dict[str, NDArray[Any]]], size: int | None = None) -> Session:
    """Return a session whose outputs depend only on the number of images."""
    prepared = Preprocessing(size, size if head == "classification" else None, inside=head == "ssdlite")
    description = Description("any", ("C5",), head=head, num_classes=3, classes=NAMES, preprocessing=prepared)
    return Session(description, lambda images: outputs(len(images)))


def photograph(name: str) -> Image.Image:
    from skimage import data

    return Image.fromarray(getattr(data, name)()).resize((240, 160))


@pytest.fixture
def build(registry: Registry) -> Callable[..., nn.Module]:
    def build(head: str, size: int | None = 64, **options: Any) -> nn.Module:
        model = registry.build("mobilenet_v3_small", head=head, num_classes=3, width=0.25, **options).eval()
        prepared = model.description.preprocessing
        if not prepared.inside:
            prepared = replace(prepared, resize=size, crop=prepared.crop and size)
        model.description = replace(model.description, classes=NAMES, preprocessing=prepared)
        # With the default initialization, weights are so small that all predictions agree to six digits.
        for module in model.head.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        return model

    return build


@torch.inference_mode()
def run(model: nn.Module, image: Image.Image) -> Any:
    return model(transforms(model)(image)[None])


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_classifier_predicts_what_softmax_and_topk_of_pytorch_do(build: Callable[..., nn.Module], name: str) -> None:
    model, image = build("classification"), photograph(name)
    expected = run(model, image).softmax(1)[0].topk(2)
    (prediction,) = predict_images(model, [image], top=2)
    assert isinstance(prediction, ClassPrediction)
    assert [one.label for one in prediction.ranked] == expected.indices.tolist()
    assert [one.value for one in prediction.ranked] == pytest.approx(expected.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_segmenter_predicts_what_interpolation_and_argmax_of_pytorch_do(
    build: Callable[..., nn.Module], name: str
) -> None:
    model, image = build("lraspp"), photograph(name)
    logits = run(model, image)["out"]
    # Shift the bias so that each class occurs somewhere.
    model.head.high_classifier.bias.data -= logits.mean((0, 2, 3))
    logits = F.interpolate(run(model, image)["out"], size=(160, 240), mode="bilinear", align_corners=False)[0]
    (prediction,) = predict_images(model, [image])
    assert isinstance(prediction, PixelPrediction)
    assert len(prediction.shares) > 1
    chosen = logits.gather(0, torch.from_numpy(prediction.mask)[None])[0]
    assert (logits.amax(0) - chosen).max() < 1e-4 * logits.abs().max()


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_detector_predicts_what_pytorch_sorts_and_scales(build: Callable[..., nn.Module], name: str) -> None:
    model, image = build("ssdlite", size=None), photograph(name)
    with torch.inference_mode():
        (output,) = model([transforms(model)(image)])
    threshold = float(output["scores"].median())
    kept = output["scores"] >= threshold
    order = output["scores"][kept].argsort(descending=True, stable=True)
    (prediction,) = predict_images(model, [image], threshold=threshold)
    assert isinstance(prediction, BoxPrediction)
    assert len(prediction.scores) > 1
    assert prediction.boxes == pytest.approx(output["boxes"][kept][order].numpy(), abs=1e-4)
    assert prediction.scores == pytest.approx(output["scores"][kept][order].numpy(), abs=1e-4)
    assert prediction.labels.tolist() == output["labels"][kept][order].tolist()


def padded(model: nn.Module) -> Session:
    """Return a session with a model's outputs; detections are padded beyond the longest of the batch."""
    predictor = ModulePredictor(model)

    def run(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        outputs = predictor(images)
        counts = [len(scores) for scores in outputs.get("scores", ())]
        if not counts:
            return {name: np.asarray(values) for name, values in outputs.items()}
        longest = max(counts) + 2
        filled = {
            name: np.stack([np.pad(each, [(0, longest - len(each)), *[(0, 0)] * (each.ndim - 1)]) for each in values])
            for name, values in outputs.items()
        }
        return {**filled, "num_detections": np.array(counts)}

    return Session(model.description, run)


@pytest.mark.parametrize("head", ["classification", "lraspp", "ssdlite"])
def test_a_session_and_its_module_predict_alike(build: Callable[..., nn.Module], head: str) -> None:
    model, images = build(head), [photograph(name) for name in PHOTOGRAPHS]
    ours, theirs = (predict_images(each, images, threshold=0) for each in (padded(model), model))
    assert [one.as_json() for one in ours] == [one.as_json() for one in theirs]


def test_sources_are_predicted_and_drawn_by_a_session(tmp_path: Any) -> None:
    photograph("coffee").save(tmp_path / "coffee.png")
    sources = find_sources([str(tmp_path)])
    session = described("classification", lambda count: {"logits": np.tile(np.float32([0, 2, 1]), (count, 1))}, 32)
    pictures = dict.fromkeys(sources, tmp_path / "drawn.png")
    (answer,) = predict_sources(session, read_ahead(sources), pictures, batch_size=2, top=1, threshold=0)
    assert [one["class"] for one in answer.predictions] == ["cat"]  # type: ignore[union-attr]
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.width == 480


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (33, 33), (41, 97), (100, 20), (64, 48)])
@pytest.mark.parametrize("target", [(1, 1), (3, 5), (48, 64), (97, 41), (300, 200)])
def test_logits_of_any_size_are_enlarged_and_reduced_as_by_pytorch(
    size: tuple[int, int], target: tuple[int, int]
) -> None:
    logits = np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)
    # Compare in float64, because PyTorch rounds sampling positions to the dtype of the values.
    expected = F.interpolate(torch.from_numpy(logits).double()[None], target[::-1], mode="bilinear")[0]
    session = described("lraspp", lambda count: {"out": np.stack([logits] * count)})
    (prediction,) = predict_images(session, [Image.new("RGB", target)])
    assert isinstance(prediction, PixelPrediction)
    chosen = expected.gather(0, torch.from_numpy(prediction.mask)[None])[0]
    assert (expected.amax(0) - chosen).max() < 1e-6


def test_masks_of_a_squeezed_image_are_stretched_as_by_pytorch() -> None:
    """A strip of 800×20 pixels is squeezed to 160×20 for the detector, and its masks have that size too."""
    masks = np.random.default_rng(0).random((1, 4, 1, 20, 160)).astype(np.float32)
    outputs = {
        "boxes": np.tile(np.float32([10, 5, 20, 15]), (1, 4, 1)),
        "scores": np.float32([[0.6, 0.9, 0.2, 0.7]]),
        "labels": np.array([[1, 2, 1, 1]]),
        "masks": masks,
    }
    expected = F.interpolate(torch.from_numpy(masks[0]), (20, 800), mode="bilinear").numpy()[[1, 3, 0], 0] > 0.5
    (prediction,) = predict_images(described("mask_rcnn", lambda _: outputs), [Image.new("RGB", (800, 20))])
    assert isinstance(prediction, BoxPrediction)
    assert prediction.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert prediction.names == ("dog", "cat", "cat")
    assert prediction.boxes.tolist() == [[50, 5, 100, 15]] * 3
    assert prediction.masks is not None
    assert (prediction.masks == expected).mean() > 0.999


def test_large_logits_have_probabilities() -> None:
    session = described("classification", lambda count: {"logits": np.tile(np.float32([900, -900, 899]), (count, 1))})
    (prediction,) = predict_images(session, [photograph("coffee")])
    assert isinstance(prediction, ClassPrediction)
    expected = torch.tensor([900.0, 899.0, -900.0]).softmax(0).tolist()
    assert [one.value for one in prediction.ranked] == pytest.approx(expected)


def test_a_module_in_a_predictor_is_a_predictor(build: Callable[..., nn.Module]) -> None:
    model = build("classification")
    assert isinstance(ModulePredictor(model), Predictor)
    assert not isinstance(model, Predictor)


def test_a_module_in_training_is_no_predictor(build: Callable[..., nn.Module]) -> None:
    with pytest.raises(OptionError, match="a model in training mode"):
        ModulePredictor(build("classification").train())


def test_maps_of_a_session_and_its_module_are_alike(registry: Registry) -> None:
    backbone = registry.build("mobilenet_v3_small", features_only=True, width=0.25, taps=("C2", "C4")).eval()
    predictor = ModulePredictor(backbone)
    session = Session(backbone.description, predictor, backbone.taps)  # type: ignore[arg-type]
    assert set(predictor.taps) == {"C2", "C4"}
    image = photograph("astronaut")
    (resized, ours), (_, theirs) = (compute_maps(image, each, (96, 128)) for each in (session, predictor))
    with torch.inference_mode():
        expected = backbone(transforms(backbone, whole=True)(resized)[None])
    assert resized.size == (128, 96)
    assert {name: values.shape for name, values in ours.items()} == {"C2": (8, 24, 32), "C4": (16, 6, 8)}
    for name, values in expected.items():
        assert np.array_equal(ours[name], theirs[name])
        assert ours[name] == pytest.approx(values[0].numpy(), abs=1e-4)


def test_maps_of_other_channels_are_refused() -> None:
    prepared = Preprocessing(mean=(0.5,) * 4, std=(1.0,) * 4)
    session = Session(Description("any", ("C5",), preprocessing=prepared), lambda _: {})
    with pytest.raises(OptionError) as error:
        compute_maps(photograph("coffee"), session)
    assert str(error.value) == "'any' takes images with 4 channels, but image files have 1 or 3; choose another model"


PREDICTED = """
import numpy as np
from PIL import Image
from featuretap.runtimes.preparing import prepare
from featuretap.specs import Tap
from featuretap.specs.description import Description
from featuretap.workflows.inference.feature_maps import compute_maps, draw_maps
from featuretap.workflows.inference.predicting import predict_images
from featuretap.workflows.inference.predictions import draw_prediction
from featuretap.workflows.inference.sources import find_sources

OUTPUTS = {
    "classification": {"logits": np.zeros((1, 21), np.float32)},
    "lraspp": {"out": np.eye(21, 12, dtype=np.float32).reshape(1, 21, 3, 4)},
    "ssdlite": {
        "boxes": np.ones((1, 2, 4), np.float32),
        "scores": np.ones((1, 2), np.float32),
        "labels": np.ones((1, 2), np.int64),
        "num_detections": np.array([1]),
    },
    None: {"C2": np.ones((1, 4, 6, 8), np.float32)},
}

class Session:
    def __init__(self, head):
        self.description = Description("any", ("C2",), head=head, num_classes=head and 21, classes="voc")
        self.taps = {"C2": Tap(4, 4)}
    def prepare(self, image):
        return prepare(image, self.description.preprocessing)
    def __call__(self, images):
        return OUTPUTS[self.description.head]

image = Image.new("RGB", (400, 300))
for head in ("classification", "lraspp", "ssdlite"):
    (prediction,) = predict_images(Session(head), [image])
    assert prediction.as_json()
    draw_prediction(image, prediction, Session(head).description)
resized, maps = compute_maps(image, Session(None))
draw_maps(resized, maps, {"C2": 4})
"""


def test_sessions_predict_and_draw_without_pytorch() -> None:
    assert heavy_modules_after(PREDICTED) == ["PIL", "numpy"]


def test_the_proof_that_pytorch_is_not_imported_can_fail() -> None:
    found = heavy_modules_after(f"{PREDICTED}\nimport featuretap.workflows.inference.modules")
    assert {"torch", "torchvision"} & set(found)
