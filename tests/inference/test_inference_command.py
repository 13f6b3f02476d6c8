"""`featuretap predict` on many images with every kind of model: tables, JSON and annotated images."""

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

import featuretap.registry
from featuretap.workflows.inference.drawing import color_of

Run = Callable[..., Completed]

CLASSES = ("background", "cat, tabby", 'a "dog"')

HEADS: dict[str, dict[str, Any]] = {
    "classification": {},
    "lraspp": {},
    "ssdlite": {"size": 64},
    "mask_rcnn": {
        "out_channels": 16,
        "min_size": 64,
        "max_size": 96,
        "box_score_thresh": 0.0,
        "rpn_post_nms_top_n_test": 20,
        "box_detections_per_img": 3,
    },
}


def build(head: str, classes: Any = CLASSES, **options: Any) -> nn.Module:
    model = featuretap.registry.build(
        "mobilenet_v3_small", head=head, num_classes=len(CLASSES), width=0.25, **HEADS.get(head, {}), **options
    )
    prepared = model.description.preprocessing
    sizes = {"classification": (40, 32), "lraspp": (40, None)}.get(head, (None, None))
    prepared = replace(prepared, resize=sizes[0], crop=sizes[1])
    model.description = replace(model.description, classes=classes, preprocessing=prepared)
    if head == "ssdlite":
        # Random weights give tied scores, and the order of tied boxes is undefined.
        spread_scores(model)
    return model


@torch.no_grad()
def spread_scores(model: nn.Module) -> None:
    torch.manual_seed(0)
    with_statistics(model, lambda model: model.head(model.backbone(torch.randn(4, 3, 96, 96))))
    for predictor in model.head.predictor.classification_head.module_list:
        predictor[1].weight.normal_()


@pytest.fixture
def weights(tmp_path: Path) -> Callable[..., Path]:
    def weights(head: str, **options: Any) -> Path:
        return featuretap.registry.save(build(head, **options), tmp_path / f"{head}.safetensors")

    return weights


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder and a subfolder with four images of several kinds."""
    from skimage import data

    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    cat = Image.fromarray(data.chelsea()).resize((90, 60))
    cat.save(folder / "cat.png")
    cat.convert("RGBA").save(folder / "clear.png")
    cat.convert("L").save(folder / "more" / "grey.jpg")
    Image.fromarray(np.full((10, 300), 40_000, np.uint16)).save(folder / "more" / "strip.png")
    return folder


def rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines() if line.strip() and "───" not in line]


def test_many_images_are_a_table_each(run: Run, photographs: Path, official_weights: Path, cat: Path) -> None:
    ran = run("predict", photographs, cat, "--weights", official_weights, "--top", 1)
    assert (ran.status, ran.err) == (0, "")
    found = rows(ran.out)
    paths = [photographs / name for name in ("cat.png", "clear.png", "more/grey.jpg", "more/strip.png")]
    assert [row for row in found if len(row) == 1] == [[str(path)] for path in (*paths, cat)]
    assert found.count(["class", "probability"]) == 5
    assert found[-1] == ["Egyptian", "cat", "0.717"]


def test_the_best_classes_of_many_are_those_of_each_alone(run: Run, photographs: Path, official_weights: Path) -> None:
    together = run("predict", photographs, "--weights", official_weights, "--top", 2, "--batch-size", 3).out
    for path in (photographs / "cat.png", photographs / "more" / "grey.jpg"):
        alone = run("predict", path, "--weights", official_weights, "--top", 2).out
        assert f"{path}\n{alone}" in together


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_unreadable_images_are_listed_and_the_others_predicted(
    run: Run, photographs: Path, weights: Callable[..., Path], arguments: tuple[str, ...]
) -> None:
    bad = photographs / "bad.png"
    bad.write_bytes(b"rubbish")
    lost = photographs / "lost.png"
    ran = run("predict", photographs, lost, "--weights", weights("classification"), *arguments)
    assert ran.status == 1
    assert ran.err == (
        f"'{bad}' is not an image that Pillow can read; use a JPEG, PNG or other image file\n"
        f"cannot read the image '{lost}': No such file or directory\n"
        "featuretap: skipped 2 of 6 images, which cannot be read\n"
    )
    names = ("cat.png", "clear.png", "grey.jpg", "strip.png")
    if arguments:
        assert [Path(entry["path"]).name for entry in json.loads(ran.out)] == list(names)
    else:
        assert all(name in ran.out for name in names)
        assert "bad.png" not in ran.out


def test_no_readable_image_gives_an_empty_list(run: Run, tmp_path: Path, weights: Callable[..., Path]) -> None:
    lost = [tmp_path / "a.png", tmp_path / "b.png"]
    ran = run("predict", *lost, "--weights", weights("classification"), "--json")
    assert (ran.status, json.loads(ran.out)) == (1, [])
    assert ran.err.endswith("featuretap: skipped 2 of 2 images, which cannot be read\n")


def test_a_classifier_in_json(run: Run, photographs: Path, weights: Callable[..., Path]) -> None:
    ran = run("predict", photographs, "--weights", weights("classification"), "--json")
    assert (ran.status, ran.err) == (0, "")
    answers = json.loads(ran.out)
    assert [answer["path"] for answer in answers] == [
        str(photographs / name) for name in ("cat.png", "clear.png", "more/grey.jpg", "more/strip.png")
    ]
    for answer in answers:
        assert set(answer) == {"path", "predictions"}
        predictions = answer["predictions"]
        assert {one["class"] for one in predictions} == set(CLASSES)
        assert all(CLASSES[one["label"]] == one["class"] for one in predictions)
        assert sum(one["probability"] for one in predictions) == pytest.approx(1)


def test_one_image_in_json_is_a_list_too(run: Run, photographs: Path, weights: Callable[..., Path]) -> None:
    ran = run("predict", photographs / "cat.png", "--weights", weights("classification"), "--top", 1, "--json")
    (answer,) = json.loads(ran.out)
    assert len(answer["predictions"]) == 1


@pytest.mark.parametrize("head", ["ssdlite", "mask_rcnn"])
def test_a_detector_lists_and_draws_its_boxes(
    run: Run, photographs: Path, tmp_path: Path, weights: Callable[..., Path], head: str
) -> None:
    file, path = weights(head), photographs / "cat.png"
    settings = ("--weights", file, "--threshold", 0.1)
    (answer,) = json.loads(run("predict", path, *settings, "--json", "--out", tmp_path / "drawn").out)
    assert answer["predictions"]
    model = featuretap.registry.load(file).eval()
    with Image.open(path) as image, torch.inference_mode():
        (expected,) = model.as_detector()([featuretap.registry.transforms(model)(image)])
    kept = expected["scores"] >= 0.1
    assert [one["score"] for one in answer["predictions"]] == pytest.approx(expected["scores"][kept].tolist(), abs=1e-5)
    for one, box, label in zip(answer["predictions"], expected["boxes"][kept], expected["labels"][kept], strict=True):
        assert one["box"] == pytest.approx(box.tolist(), abs=1e-3)
        assert (one["label"], one["class"]) == (label, CLASSES[label])
    table = rows(run("predict", path, *settings).out)
    assert table[0] == ["class", "score", "left", "top", "right", "bottom"]
    best = answer["predictions"][0]
    assert table[1][-5:] == [f"{best['score']:.3f}", *(f"{corner:.1f}" for corner in best["box"])]
    assert " ".join(table[1][:-5]) == best["class"]
    # Small images are enlarged by a factor of four.
    assert answer["picture"] == str(tmp_path / "drawn" / "cat.png")
    with Image.open(answer["picture"]) as drawn:
        assert drawn.size == (360, 240)
        pixels = np.asarray(drawn)
    assert (pixels == color_of(best["label"])).all(2).sum() > 50


def test_a_detector_can_find_nothing(run: Run, photographs: Path, weights: Callable[..., Path]) -> None:
    ran = run("predict", photographs / "cat.png", "--weights", weights("ssdlite"), "--threshold", 1)
    assert (ran.status, ran.out) == (0, "  nothing found\n")


def test_the_default_threshold_is_one_half(run: Run, photographs: Path, weights: Callable[..., Path]) -> None:
    file = weights("mask_rcnn")
    scores = {
        threshold: [
            one["score"]
            for answer in json.loads(run("predict", photographs, "--weights", file, "--json", *threshold).out)
            for one in answer["predictions"]
        ]
        for threshold in ((), ("--threshold", 0), ("--threshold", 0.5))
    }
    assert scores[()] == scores["--threshold", 0.5] == [score for score in scores["--threshold", 0] if score >= 0.5]
    assert scores["--threshold", 0]


def test_a_segmenter_names_the_classes_of_the_pixels_and_draws_them(
    run: Run, photographs: Path, tmp_path: Path, weights: Callable[..., Path]
) -> None:
    file, path = weights("lraspp"), photographs / "cat.png"
    ran = run("predict", photographs, "--weights", file, "--json", "--out", tmp_path / "drawn")
    answers = json.loads(ran.out)
    assert [answer["picture"] for answer in answers] == [
        str(tmp_path / "drawn" / name) for name in ("cat.png", "clear.png", "more/grey.png", "more/strip.png")
    ]
    model = featuretap.registry.load(file).eval()
    with Image.open(path) as image, torch.inference_mode():
        logits = model(featuretap.registry.transforms(model)(image)[None])["out"]
        mask = nn.functional.interpolate(logits, size=image.size[::-1], mode="bilinear")[0].argmax(0)
    shares = {one["label"]: one["share"] for one in answers[0]["predictions"]}
    assert shares == pytest.approx(
        {int(label): float((mask == label).float().mean()) for label in mask.unique()}, abs=1e-3
    )
    assert all(one["class"] == CLASSES[one["label"]] for one in answers[0]["predictions"])
    table = rows(run("predict", path, "--weights", file).out)
    assert table[0] == ["class", "share"]
    assert table[1][-1] == f"{max(shares.values()):.3f}"
    with Image.open(answers[0]["picture"]) as drawn, Image.open(path) as image:
        large = np.asarray(image.resize((360, 240), Image.Resampling.NEAREST)).astype(int)
        pixels = np.asarray(drawn).astype(int)[:240]
    for label in shares:
        inside = mask.numpy().repeat(4, 0).repeat(4, 1) == label
        expected = large if label == 0 else (large + np.array(color_of(label))) / 2
        assert (np.abs(pixels - expected).max(2)[inside] <= 1).mean() > 0.99


def test_a_classifiers_classes_are_drawn_below_the_image(
    run: Run, photographs: Path, tmp_path: Path, weights: Callable[..., Path]
) -> None:
    ran = run("predict", photographs / "cat.png", "--weights", weights("classification"), "--out", tmp_path / "drawn")
    picture = tmp_path / "drawn" / "cat.png"
    assert rows(ran.out)[-1] == ["picture:", str(picture)]
    with Image.open(picture) as drawn, Image.open(photographs / "cat.png") as image:
        assert drawn.width == 360
        assert np.array_equal(np.asarray(drawn)[2:240:4, 2::4], np.asarray(image))
        below = np.asarray(drawn)[240:]
    assert (below == 255).mean() > 0.5
    assert (below == 0).any()


def test_no_image_is_overwritten(run: Run, photographs: Path, weights: Callable[..., Path]) -> None:
    before = (photographs / "cat.png").read_bytes()
    ran = run("predict", photographs, "--weights", weights("classification"), "--out", photographs)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        f"featuretap: the picture '{photographs}/cat.png' would overwrite an image; choose another folder for "
        "pictures\n"
    )
    assert (photographs / "cat.png").read_bytes() == before


def test_a_picture_that_cannot_be_written_is_one_line(
    run: Run, photographs: Path, tmp_path: Path, weights: Callable[..., Path]
) -> None:
    file = weights("classification")
    (tmp_path / "file").write_text("")
    ran = run("predict", photographs, "--weights", file, "--out", tmp_path / "file" / "below")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (f"featuretap: cannot write the picture '{tmp_path}/file/below/cat.png': Not a directory\n")


@pytest.mark.parametrize(
    ("head", "option", "message"),
    [
        ("ssdlite", ("--top", 3), "--top needs a classification model, but the task of this one is detection"),
        (
            "lraspp",
            ("--threshold", 0.5),
            "--threshold needs a detection model, but the task of this one is segmentation",
        ),
    ],
)
def test_options_of_another_task_are_refused(
    run: Run, photographs: Path, weights: Callable[..., Path], head: str, option: tuple[object, ...], message: str
) -> None:
    ran = run("predict", photographs, "--weights", weights(head), *option)
    assert (ran.status, ran.out, ran.err) == (2, "", f"featuretap: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument 'SOURCE...'."),
        (("x", "--top", "0"), "Invalid value for '--top': 0 is not in the range x>=1."),
        (("x", "--threshold", "2"), "Invalid value for '--threshold': 2.0 is not in the range 0<=x<=1."),
        (("x", "--batch-size", "0"), "Invalid value for '--batch-size': 0 is not in the range 1<=x<=65536."),
        (("x", "--out", __file__), f"Invalid value for '--out': Directory '{__file__}' is a file."),
    ],
)
def test_bad_arguments_are_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    ran = run("predict", *arguments)
    assert (ran.status, ran.out, ran.err) == (2, "", f"featuretap: {message}\n")


def test_a_folder_without_images_is_one_line(run: Run, tmp_path: Path) -> None:
    ran = run("predict", tmp_path)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"featuretap: '{tmp_path}' contains no images; supported suffixes are .apng, ")


def test_an_address_is_not_requested_offline(run: Run) -> None:
    ran = run("predict", "http://127.0.0.1:9/cat.png")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        "featuretap: cannot download 'http://127.0.0.1:9/cat.png': FEATURETAP_OFFLINE forbids downloads; use a local "
        "file\n"
    )


def test_a_model_of_other_channels_is_refused(run: Run, photographs: Path, weights: Callable[..., Path]) -> None:
    ran = run("predict", photographs, "--weights", weights("classification", in_channels=4))
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        "featuretap: 'mobilenet_v3_small' takes images with 4 channels, but image files have 1 or 3; choose "
        "another model\n"
    )


def test_single_channel_models_read_every_image(run: Run, photographs: Path, weights: Callable[..., Path]) -> None:
    ran = run("predict", photographs, "--weights", weights("classification", in_channels=1), "--json")
    cat, clear, grey, _ = (answer["predictions"] for answer in json.loads(ran.out))
    assert ran.status == 0
    assert cat == clear
    assert [one["label"] for one in cat] == [one["label"] for one in grey]


def test_weights_in_half_precision_predict(run: Run, photographs: Path, tmp_path: Path) -> None:
    model = build("ssdlite").half()
    file = featuretap.registry.save(model, tmp_path / "half.safetensors")
    ran = run("predict", photographs, "--weights", file, "--threshold", 0.1, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert json.loads(ran.out)[0]["predictions"]


def test_nan_weights_are_refused(run: Run, photographs: Path, tmp_path: Path) -> None:
    model = build("classification")
    model.head.logits.weight.data.fill_(float("nan"))
    ran = run("predict", photographs, "--weights", featuretap.registry.save(model, tmp_path / "nan.safetensors"))
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        "featuretap: the model's output contains NaN or infinity; check the weights with featuretap inspect --finite\n"
    )


def test_detectors_of_a_label_set_name_its_classes(run: Run, photographs: Path, tmp_path: Path) -> None:
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    model = featuretap.registry.build("mobilenet_v3_small", head="ssdlite", width=0.25, size=64)
    model.description = replace(model.description, classes="coco")
    file = featuretap.registry.save(model, tmp_path / "coco.safetensors")
    ran = run("predict", photographs / "cat.png", "--weights", file, "--threshold", 0, "--json")
    (answer,) = json.loads(ran.out)
    categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert answer["predictions"]
    assert all(one["class"] == categories[one["label"]] for one in answer["predictions"])


def test_a_model_by_name_predicts_with_the_catalogues_weights(
    run: Run, photographs: Path, official_weights: Path
) -> None:
    expected = run("predict", photographs, "--weights", official_weights)
    for arguments in ((), ("--model", "mobilenet_v2"), ("--model", "mobilenetv2", "--weights", "imagenet1k_v1")):
        ran = run("predict", photographs, *arguments)
        assert (ran.status, ran.out) == (0, expected.out)
