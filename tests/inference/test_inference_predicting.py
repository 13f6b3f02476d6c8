"""Predictions as data: each image gets the model's own output, whatever else is in the batch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2 import functional as VF  # noqa: N812

from featuretap.registry import Registry, transforms
from featuretap.registry.errors import OptionError, WeightsError
from featuretap.specs.preprocessing import Preprocessing
from featuretap.workflows.inference.predicting import (
    BoxPrediction,
    ClassPrediction,
    ClassScore,
    PixelPrediction,
    Prediction,
    predict_images,
)

NAMES = ("background", "cat", "dog")

DETECTORS: dict[str, dict[str, Any]] = {
    "ssdlite": {"size": (97, 131), "detections_per_img": 7},
    "retinanet": {"out_channels": 32, "min_size": 65, "max_size": 99, "score_thresh": 0.0, "detections_per_img": 7},
    "faster_rcnn": {
        "out_channels": 32,
        "min_size": 65,
        "max_size": 99,
        "box_score_thresh": 0.0,
        "rpn_post_nms_top_n_test": 20,
        "box_detections_per_img": 4,
    },
}
DETECTORS["mask_rcnn"] = DETECTORS["faster_rcnn"]
SIZES = [(60, 40), (40, 60), (60, 40), (61, 40), (60, 40), (200, 30)]


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    from skimage import data

    return Image.fromarray(data.chelsea()).resize((width, height)).convert(mode)


def model_of(registry: Registry, head: str = "classification", **options: Any) -> nn.Module:
    """Return a small model whose outputs differ between positions and images."""
    model = registry.build(
        "mobilenet_v3_small", head=head, num_classes=3, width=0.25, **DETECTORS.get(head, {}), **options
    )
    model.description = replace(model.description, classes=NAMES)
    # With the default initialization, weights are so small that all predictions agree to six digits.
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model.eval()


def small(model: nn.Module, resize: int | None, crop: int | None) -> nn.Module:
    model.description = replace(
        model.description, preprocessing=replace(model.description.preprocessing, resize=resize, crop=crop)
    )
    return model


def undecided(model: nn.Module, image: Image.Image) -> nn.Module:
    """Return the segmenter with its last bias shifted, so that each class occurs somewhere in the image."""
    with torch.inference_mode():
        mean = model(model_input(model, image))["out"].mean((0, 2, 3))
    last = [layer for layer in model.head.modules() if isinstance(layer, nn.Conv2d) and layer.out_channels == 3][-1]
    last.bias.data -= mean
    return model


def model_input(model: nn.Module, image: Image.Image) -> torch.Tensor:
    batch: torch.Tensor = transforms(model)(image)[None]
    return batch


def numbers(prediction: Prediction) -> list[np.ndarray]:
    """Return the values to compare; class scores are sorted by label."""
    if isinstance(prediction, ClassPrediction):
        return [np.array([one.value for one in sorted(prediction.ranked)])]
    if isinstance(prediction, PixelPrediction):
        return [prediction.mask]
    return [prediction.boxes, prediction.labels, prediction.scores]


def assert_alike(ours: Sequence[Prediction], theirs: Sequence[Prediction]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        for found, expected in zip(numbers(our), numbers(their), strict=True):
            assert found.shape == expected.shape
            # Boxes are in pixels, so their tolerance is larger.
            assert found == pytest.approx(expected, abs=1e-3 if found.ndim == 2 else 1e-5)


def test_a_classifier_ranks_its_classes(registry: Registry) -> None:
    model = small(model_of(registry), 48, 32)
    images = [photograph(width, height) for width, height in SIZES]
    found = predict_images(model, images, top=2)
    for image, prediction in zip(images, found, strict=True):
        with torch.inference_mode():
            expected = F.softmax(model(model_input(model, image))[0], dim=0).numpy()
        assert isinstance(prediction, ClassPrediction)
        labels = [one.label for one in prediction.ranked]
        assert labels == np.argsort(-expected)[:2].tolist()
        assert [one.name for one in prediction.ranked] == [NAMES[label] for label in labels]
        assert [one.value for one in prediction.ranked] == pytest.approx(expected[labels].tolist(), abs=1e-5)


def test_no_more_classes_are_named_than_there_are(registry: Registry) -> None:
    (prediction,) = predict_images(small(model_of(registry), 48, 32), [photograph(40, 40)], top=50)
    assert isinstance(prediction, ClassPrediction)
    assert sorted(one.name for one in prediction.ranked) == sorted(NAMES)
    assert sum(one.value for one in prediction.ranked) == pytest.approx(1)


@pytest.mark.parametrize("head", DETECTORS)
def test_a_detector_predicts_what_torchvisions_detector_predicts(registry: Registry, head: str) -> None:
    model = model_of(registry, head)
    image = photograph(120, 80)
    with torch.inference_mode():
        ((expected),) = model.as_detector()([VF.to_dtype(VF.to_image(image), torch.float32, scale=True)])
    (everything,) = predict_images(model, [image], threshold=0)
    assert isinstance(everything, BoxPrediction)
    assert len(everything.scores) > 1
    assert everything.boxes == pytest.approx(expected["boxes"].numpy(), abs=1e-3)
    assert everything.scores == pytest.approx(expected["scores"].numpy(), abs=1e-5)
    assert everything.labels.tolist() == expected["labels"].tolist()
    assert everything.names == tuple(NAMES[label] for label in expected["labels"])
    if head == "mask_rcnn":
        assert everything.masks is not None
        assert everything.masks.shape == (len(everything.scores), 80, 120)
        assert (everything.masks == (expected["masks"][:, 0] > 0.5).numpy()).mean() > 0.999
    else:
        assert everything.masks is None
    # Keep only the best boxes.
    threshold = float(expected["scores"][1])
    (best,) = predict_images(model, [image], threshold=threshold)
    assert isinstance(best, BoxPrediction)
    assert len(best.scores) == len(best.boxes) == len(best.names) == int((expected["scores"] >= threshold).sum())


@pytest.mark.parametrize("head", ["ssdlite", "mask_rcnn"])
def test_a_detector_can_find_nothing(registry: Registry, head: str) -> None:
    (prediction,) = predict_images(model_of(registry, head), [photograph(60, 40)], threshold=1)
    assert isinstance(prediction, BoxPrediction)
    assert (prediction.boxes.shape, prediction.labels.shape, prediction.names) == ((0, 4), (0,), ())
    assert prediction.masks is None if head == "ssdlite" else prediction.masks is not None
    assert prediction.masks is None or prediction.masks.shape == (0, 40, 60)


@pytest.mark.parametrize("head", ["lraspp", "deeplab_v3"])
@pytest.mark.parametrize("size", [(60, 40), (41, 97), (300, 200)])
def test_a_segmenter_predicts_the_class_of_every_pixel(registry: Registry, head: str, size: tuple[int, int]) -> None:
    image = photograph(*size)
    model = undecided(small(model_of(registry, head), 48, None), image)
    with torch.inference_mode():
        logits = model(model_input(model, image))["out"]
        expected = F.interpolate(logits, size=size[::-1], mode="bilinear")[0].argmax(0).numpy()
    (prediction,) = predict_images(model, [image])
    assert isinstance(prediction, PixelPrediction)
    assert prediction.mask.shape == expected.shape
    assert (prediction.mask == expected).mean() > 0.999
    assert len(prediction.shares) == len(np.unique(expected)) > 1
    for one in prediction.shares:
        assert one.name == NAMES[one.label]
        assert one.value == pytest.approx((expected == one.label).mean(), abs=1e-3)
    assert [one.value for one in prediction.shares] == sorted((one.value for one in prediction.shares), reverse=True)


@pytest.mark.parametrize("head", ["classification", "lraspp", "ssdlite", "retinanet", "faster_rcnn"])
def test_a_prediction_does_not_depend_on_the_images_beside_it(registry: Registry, head: str) -> None:
    model = model_of(registry, head)
    if head in ("classification", "lraspp"):
        small(model, 48, 32 if head == "classification" else None)
    images = [photograph(*size) for size in SIZES]
    if head == "lraspp":
        undecided(model, images[0])
    alone = [prediction for image in images for prediction in predict_images(model, [image], threshold=0)]
    for batch_size in (1, 2, 16):
        assert_alike(predict_images(model, images, batch_size=batch_size, threshold=0), alone)
    assert_alike(predict_images(model, images[::-1], threshold=0)[::-1], alone)


def test_batches_are_full_up_to_the_batch_size(registry: Registry) -> None:
    model, seen = small(model_of(registry), 48, 32), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    predict_images(model, [photograph(width, height) for width, height in SIZES], batch_size=4)
    assert seen == [(4, 3, 32, 32), (2, 3, 32, 32)]
    model, seen = small(model_of(registry, "lraspp"), 48, None), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    predict_images(model, [photograph(width, height) for width, height in SIZES], batch_size=2)
    assert sorted(seen) == sorted([(2, 3, 48, 72), (1, 3, 48, 72), (1, 3, 72, 48), (1, 3, 48, 73), (1, 3, 48, 320)])


def test_large_images_go_through_a_detector_one_by_one(registry: Registry) -> None:
    model, seen = model_of(registry, "ssdlite"), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    predict_images(model, [Image.new("RGB", (2500, 2000))] * 2)
    predict_images(model, [Image.new("RGB", (2000, 1900))] * 2)
    assert seen == [1, 1, 2]


@pytest.mark.parametrize("head", ["classification", "lraspp", "ssdlite", "retinanet", "mask_rcnn"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size_and_mode_are_predicted(registry: Registry, head: str, channels: int) -> None:
    model = model_of(registry, head, in_channels=channels)
    if head in ("classification", "lraspp"):
        small(model, 48, 32 if head == "classification" else None)
    images = [
        photograph(1, 1),
        photograph(3000, 10),
        photograph(1, 20_000),
        photograph(31, 17, "L"),
        photograph(31, 17, "1"),
        photograph(31, 17, "P"),
        photograph(31, 17, "CMYK"),
        photograph(31, 17, "RGBA"),
        Image.fromarray(np.asarray(photograph(31, 17, "L")).astype(np.uint16) * 257),
    ]
    for image, prediction in zip(images, predict_images(model, images, threshold=0), strict=True):
        if isinstance(prediction, BoxPrediction):
            assert (prediction.boxes >= 0).all()
            assert (prediction.boxes <= np.array([*image.size, *image.size]) + 1e-3).all()
            assert np.isfinite(prediction.scores).all()
            if prediction.masks is not None:
                assert prediction.masks.shape[1:] == image.size[::-1]
        elif isinstance(prediction, PixelPrediction):
            assert prediction.mask.shape == image.size[::-1]
            assert sum(one.value for one in prediction.shares) == pytest.approx(1)
        else:
            assert sum(one.value for one in prediction.ranked) == pytest.approx(1)


def test_grey_and_its_colours_are_the_same_to_a_model_of_one_channel(registry: Registry) -> None:
    model = small(model_of(registry, in_channels=1), 48, 32)
    grey = photograph(60, 40, "L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    ours = predict_images(model, [grey, grey.convert("RGB"), deep])
    assert_alike(ours, [ours[0]] * 3)


@pytest.mark.parametrize("resize", [48, None])
def test_a_strip_is_seen_in_its_middle(registry: Registry, resize: int | None) -> None:
    """Classifiers crop the center anyway, so the ends of a strip are cut off before resizing makes it huge."""
    model = small(model_of(registry), resize, 32)
    black = Image.new("RGB", (3000, 10))
    strip = black.copy()
    strip.paste(photograph(40, 10), (1480, 0))
    with torch.inference_mode():
        expected, other = (model(model_input(model, image))[0].softmax(0) for image in (strip, black))
    (prediction,) = predict_images(model, [strip])
    assert isinstance(prediction, ClassPrediction)
    found = torch.tensor([one.value for one in sorted(prediction.ranked)])
    assert (found - expected).abs().max() < 0.1 * (expected - other).abs().max()


def test_the_first_of_equally_likely_classes_is_chosen(registry: Registry) -> None:
    model = small(model_of(registry, "lraspp"), 48, None)
    for parameter in model.head.parameters():
        parameter.data.zero_()
    (prediction,) = predict_images(model, [photograph(60, 40)])
    assert isinstance(prediction, PixelPrediction)
    assert prediction.shares == ((0, "background", 1.0),)


def test_boxes_in_a_strip_are_where_they_are_in_it(registry: Registry) -> None:
    """The strip is squeezed for the detector, and the boxes are scaled back."""
    model = model_of(registry, "ssdlite")
    strip = photograph(800, 20)
    squeezed = strip.resize((160, 20), Image.Resampling.BILINEAR)
    ours, theirs = (predict_images(model, [image], threshold=0)[0] for image in (strip, squeezed))
    assert isinstance(ours, BoxPrediction)
    assert isinstance(theirs, BoxPrediction)
    assert ours.boxes == pytest.approx(theirs.boxes * np.array([5, 1, 5, 1]), abs=1e-3)


def test_no_images_have_no_predictions(registry: Registry) -> None:
    assert predict_images(model_of(registry), []) == []


def test_rated_classes_can_be_unpacked() -> None:
    label, name, value = ClassScore(3, "cat", 0.5)
    assert (label, name, value) == (3, "cat", 0.5)


def refusal(model: nn.Module) -> str:
    with pytest.raises((OptionError, WeightsError)) as error:
        predict_images(model, [photograph(30, 30)])
    return str(error.value)


def test_a_model_without_classes_is_refused(registry: Registry) -> None:
    advice = "predicts no classes; use a classifier, a detector or a segmenter"
    pyramid = registry.build("mobilenet_v3_small", head="fpn", width=0.25).eval()
    assert refusal(pyramid) == f"'mobilenet_v3_small' has the head 'fpn' and {advice}"
    bare = registry.build("mobilenet_v3_small", features_only=True, width=0.25).eval()
    assert refusal(bare) == f"'mobilenet_v3_small' has no head and {advice}"
    pooled = registry.build("mobilenet_v3_small", num_classes=0, width=0.25).eval()
    assert refusal(pooled) == f"'mobilenet_v3_small' has the head 'classification' and {advice}"


def test_a_model_in_training_is_refused(registry: Registry) -> None:
    assert refusal(model_of(registry).train()) == (
        "cannot predict with a model in training mode; call model.eval() first"
    )


def test_a_model_without_description_is_refused() -> None:
    assert refusal(nn.Linear(3, 3).eval()) == (
        "Linear has no description; predictions are made by models that registry.build or registry.load returned"
    )


def test_a_model_of_other_channels_is_refused(registry: Registry) -> None:
    assert refusal(model_of(registry, in_channels=4)) == (
        "'mobilenet_v3_small' takes images with 4 channels, but image files have 1 or 3; choose another model"
    )


@pytest.mark.parametrize("head", ["classification", "lraspp"])
def test_nan_output_is_refused(registry: Registry, head: str) -> None:
    model = model_of(registry, head)
    next(model.parameters()).data.fill_(float("nan"))
    assert refusal(model) == (
        "the model's output contains NaN or infinity; check the weights with featuretap inspect --finite"
    )


def test_preprocessing_is_the_models_own(registry: Registry) -> None:
    """Other means and standard deviations change the predictions, so the values must come from the model."""
    model = small(model_of(registry), 48, 32)
    images = [photograph(60, 40)]
    before = predict_images(model, images)
    prepared = Preprocessing(48, 32, (0.1, 0.2, 0.3), (0.9, 0.9, 0.9))
    model.description = replace(model.description, preprocessing=prepared)
    with pytest.raises(AssertionError):
        assert_alike(predict_images(model, images), before)
