"""`featuretap predict`, `taps`, `extract` and `evaluate` with a model that has several heads."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import Completed
from support.oracles import with_statistics
from torch import nn

from featuretap.registry import Registry
from featuretap.workflows.inference.drawing import Page, color_of, draw_boxes
from featuretap.workflows.inference.predicting import predict_images
from featuretap.workflows.inference.predictions import (
    BoxPrediction,
    ClassPrediction,
    HeadPrediction,
    PixelPrediction,
    SeveralPredictions,
    draw_prediction,
)

Run = Callable[..., Completed]

CLASSES = ("background", "cat", "dog")
HEADS = {"objects": "ssdlite", "road": "lraspp", "scene": "classification", "levels": "fpn"}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    classes = {name: {"num_classes": 3} for name in ("objects", "road", "scene")}
    classes["objects"]["size"] = 96
    model = Registry().build("mobilenet_v3_small", head=HEADS, width=0.25, levels={"out_channels": 8}, **classes)
    with torch.no_grad():
        with_statistics(model, lambda model: model.backbone(torch.randn(4, 3, 96, 96)))
        for name in ("objects", "road"):
            for layer in model.heads[name].modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight)
    for name in model.heads:
        head = model.description.heads[name]
        known = CLASSES if head.num_classes else ""
        model.description.heads[name] = replace(head, classes=known)  # type: ignore[index]
    return model.eval()


@pytest.fixture
def several(registry: Registry, model: nn.Module, tmp_path: Path) -> Path:
    return registry.save(model, tmp_path / "several.safetensors")


def photograph(width: int, height: int) -> Image.Image:
    from skimage import data

    return Image.fromarray(data.chelsea()).resize((width, height))


def values(prediction: HeadPrediction) -> list[np.ndarray]:
    """Return the values to compare."""
    if isinstance(prediction, ClassPrediction):
        return [np.array([one.value for one in sorted(prediction.ranked)])]
    if isinstance(prediction, PixelPrediction):
        return [prediction.mask]
    return [prediction.boxes, prediction.scores, prediction.labels]


def agree(ours: HeadPrediction, theirs: HeadPrediction) -> bool:
    pairs = zip(values(ours), values(theirs), strict=True)
    return all(one.shape == other.shape and np.isclose(one, other, atol=1e-3).mean() > 0.99 for one, other in pairs)


@pytest.mark.parametrize("opened", ["module", "session"])
def test_images_of_mixed_sizes_are_predicted_as_one_by_one(
    registry: Registry, model: nn.Module, several: Path, opened: str
) -> None:
    predictor: Any = model if opened == "module" else registry.session(several, runtime="onnxruntime")
    images = [photograph(*size) for size in ((90, 60), (60, 90), (90, 60), (300, 20))]
    together = predict_images(predictor, images, threshold=0.3)
    for image, prediction in zip(images, together, strict=True):
        assert isinstance(prediction, SeveralPredictions)
        # A pyramid makes no predictions.
        assert list(prediction.heads) == ["objects", "road", "scene"]
        (alone,) = predict_images(predictor, [image], threshold=0.3)
        assert isinstance(alone, SeveralPredictions)
        assert all(agree(found, alone.heads[name]) for name, found in prediction.heads.items())
        assert prediction.heads["road"].mask.shape == (image.height, image.width)
        boxes = prediction.heads["objects"].boxes
        assert len(boxes) > 0
        assert (boxes <= [image.width, image.height] * 2).all()


def test_sessions_predict_what_the_model_does(registry: Registry, model: nn.Module, several: Path) -> None:
    image = photograph(90, 60)
    session: Any = registry.session(several, runtime="onnxruntime")
    ours, theirs = (predict_images(predictor, [image], threshold=0.3)[0] for predictor in (session, model))
    assert all(agree(found, theirs.heads[name]) for name, found in ours.heads.items())


@pytest.mark.parametrize("arguments", [(), ("--torch",)], ids=["session", "torch"])
def test_predict_prints_every_head_and_draws_one_picture(
    run: Run, tmp_path: Path, several: Path, arguments: tuple[str, ...]
) -> None:
    photograph(400, 300).save(tmp_path / "cat.png")
    command = ("predict", tmp_path / "cat.png", "--weights", several, "--threshold", 0.3, "--top", 2, *arguments)
    ran = run(*command, "--out", tmp_path / "drawn")
    assert (ran.status, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert [line for line in lines if line.endswith(":")] == ["objects:", "road:", "scene:"]
    with Image.open(tmp_path / "drawn" / "cat.png") as picture:
        # The legend and the classes are drawn below the image.
        assert picture.width == 400
        assert picture.height > 300
    (answer,) = json.loads(run(*command, "--json").out)
    found = answer["predictions"]
    assert list(found) == ["objects", "road", "scene"]
    assert {"label", "class", "score", "box"} == found["objects"][0].keys()
    assert sum(one["share"] for one in found["road"]) == pytest.approx(1)
    assert len(found["scene"]) == 2


def test_predict_selects_a_head(run: Run, tmp_path: Path, several: Path, cat: Path) -> None:
    (all_heads,) = json.loads(run("predict", cat, "--weights", several, "--json").out)
    for name in ("objects", "scene"):
        (answer,) = json.loads(run("predict", cat, "--weights", several, "--head", name, "--json").out)
        assert isinstance(answer["predictions"], list)
    # On its own, the classifier gets the center crop it was trained with.
    assert len(answer["predictions"]) == len(all_heads["predictions"]["scene"]) == 3


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ("predict", "{cat}", "--weights", "{path}", "--head", "raod"),
            "'{path}' has no head 'raod'; did you mean 'road'? its heads are objects, road, scene, levels",
        ),
        (
            ("predict", "{cat}", "--head", "road"),
            "--head selects a head of a weights file and cannot add one; pass a file with several heads as "
            "--weights, or leave --head out and choose the weights of a detector, such as --model mobilenet_v2 "
            "--weights ssdlite300_person",
        ),
        (
            ("predict", "{cat}", "--model", "mobilenet_v2", "--weights", "ssdlite300_person", "--head", "ssdlite"),
            "--head selects a head of a weights file and cannot add one; pass a file with several heads as "
            "--weights, or leave --head out and choose the weights of a detector, such as --model mobilenet_v2 "
            "--weights ssdlite300_person",
        ),
        (
            ("predict", "{cat}", "--model", "mobilenet_v2", "--weights", "{path}", "--head", "road"),
            "--head selects a head of a weights file; leave --model out",
        ),
        (
            ("predict", "{cat}", "--weights", "several.onnx", "--head", "road"),
            "the exported file 'several.onnx' always computes all heads; leave --head out, or pass the weights file "
            "that it was exported from",
        ),
        (
            ("predict", "{cat}", "--weights", "{path}", "--head", "road", "--top", "2"),
            "--top needs a classification model, but the task of this one is segmentation",
        ),
        (
            ("evaluate", "digits", "--weights", "{path}"),
            "'{path}' is a model with several heads: objects, road, scene, levels; select one with --head NAME",
        ),
        (
            ("evaluate", "digits", "--weights", "{path}", "--head", "raod"),
            "the model has no head 'raod'; did you mean 'road'? its heads are objects, road, scene, levels",
        ),
        (
            ("evaluate", "digits", "--weights", "{path}", "--model", "mobilenet_v2", "--head", "road"),
            "--head selects a head of a weights file; leave --model out",
        ),
    ],
    ids=[
        "misspelled",
        "no file",
        "tag",
        "model and file",
        "exported",
        "top",
        "evaluate all",
        "evaluate another",
        "evaluate a model",
    ],
)
def test_a_head_that_cannot_be_selected_is_refused(
    run: Run, several: Path, cat: Path, command: tuple[str, ...], message: str
) -> None:
    ran = run(*(argument.format(path=several, cat=cat) for argument in command))
    assert (ran.status, ran.out, ran.err) == (2, "", f"featuretap: {message.format(path=several)}\n")


def test_one_head_is_evaluated_as_alone(run: Run, registry: Registry, tmp_path: Path) -> None:
    heads = {"digit": "classification", "road": "lraspp"}
    model = registry.build("mobilenet_v3_small", head=heads, digit={"num_classes": 10}, width=0.25)
    several = registry.save(model, tmp_path / "several.safetensors")
    alone = registry.save(registry.select_head(model, "digit"), tmp_path / "digit.safetensors")
    ours, theirs = (
        run("evaluate", "digits", "--weights", path, "--json", *more)
        for path, more in ((several, ("--head", "digit")), (alone, ()))
    )
    assert ours.status == 0
    assert json.loads(ours.out) == json.loads(theirs.out)


def test_taps_and_extract_use_the_backbone(run: Run, tmp_path: Path, several: Path, cat: Path) -> None:
    ran = run("taps", cat, "--weights", several, "--taps", "C2,C5", "--out", tmp_path / "taps.png")
    assert (ran.status, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines()[3:-1]] == ["C2", "C5"]
    ran = run("extract", cat, "--weights", several, "--taps", "C3", "--pool", "--out", tmp_path / "features")
    assert ran.status == 0
    assert "1 images, 0 unreadable" in ran.out


def test_classes_of_two_heads_have_colours_of_their_own(model: nn.Module) -> None:
    mask = np.zeros((300, 400), np.int64)
    mask[200:] = 1
    boxes = np.array([[100, 50, 200, 150]], np.float32)
    found = BoxPrediction(boxes, np.array([1]), ("cat",), np.array([0.9], np.float32))
    prediction = SeveralPredictions({"objects": found, "road": PixelPrediction(mask, ())})
    drawn = draw_prediction(Image.new("RGB", (400, 300), "white"), prediction, model.description)
    assert drawn.getpixel((150, 50)) == color_of(1)
    # The mask's classes are numbered after the detector's three classes. Edges of areas have the full color.
    assert drawn.getpixel((300, 200)) == color_of(4)
    # Boxes are drawn on top of masks.
    found = replace(found, boxes=boxes + 100)
    prediction = SeveralPredictions({"objects": found, "road": PixelPrediction(mask, ())})
    drawn = draw_prediction(Image.new("RGB", (400, 300), "white"), prediction, model.description)
    assert drawn.getpixel((250, 249)) == color_of(1)


def test_labels_of_boxes_do_not_hide_one_another() -> None:
    boxes = [[200, 100, 220, 120], [201, 101, 221, 121], [202, 102, 222, 122]]
    drawn = np.asarray(draw_boxes(Image.new("RGB", (400, 300), "grey"), boxes, [0, 1, 2], [0.9, 0.8, 0.7], CLASSES))
    for label, name in enumerate(CLASSES):
        alone = Image.new("RGB", (400, 300), "grey")
        single = np.asarray(draw_boxes(alone, boxes[label : label + 1], [label], [0.9], CLASSES))
        drawn_area, single_area = ((picture == color_of(label)).all(2).sum() for picture in (drawn, single))
        # A box outline, which may be hidden, has 160 pixels; a label has about a thousand.
        assert drawn_area > single_area - 250, name


def test_a_title_begins_the_classes_of_a_head() -> None:
    titled, plain = Page(Image.new("RGB", (400, 300))), Page(Image.new("RGB", (400, 300)))
    for page, title in ((titled, "scene"), (plain, "")):
        page.add_text(["cat  0.900", "dog  0.100"], title=title)
    # The titled classes form one paragraph, the untitled ones two lines.
    assert titled.finish().height < plain.finish().height
