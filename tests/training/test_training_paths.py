"""Every data format with every task on the command line: train, evaluate, predict and resume."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import Completed
from support.data_sets import a_box, classes_of, coco, mask, voc

from featuretap import registry
from featuretap.specs.description import Description

Run = Callable[..., Completed]
SIDE = 64
COUNT = 10


def rectangles(path: Path) -> list[tuple[Path, tuple[int, int, int, int], str]]:
    """Write noisy images with one red or green rectangle each, and return each path with its corners and class."""
    noise = np.random.default_rng(0)
    path.mkdir(parents=True)
    made = []
    for number in range(COUNT):
        pixels = noise.integers(0, 60, (SIDE, SIDE, 3))
        x, y = (int(value) for value in noise.integers(2, 30, 2))
        kind = ("red", "green")[number % 2]
        pixels[y : y + 24, x : x + 28, ("red", "green").index(kind)] += 180
        file = path / f"{number}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        made.append((file, (x, y, x + 28, y + 24), kind))
    return made


def coco_folder(folder: Path) -> Path:
    made = rectangles(folder / "images")
    annotations = [
        a_box(
            number,
            number,
            [x1, y1, x2 - x1, y2 - y1],
            {"red": 3, "green": 7}[kind],
            segmentation=[[x1, y1, x2, y1, x2, y2, x1, y2]],
            area=(x2 - x1) * (y2 - y1),
        )
        for number, (_, (x1, y1, x2, y2), kind) in enumerate(made, start=1)
    ]
    images = [
        {"id": number, "file_name": file.name, "width": SIDE, "height": SIDE}
        for number, (file, _, _) in enumerate(made, start=1)
    ]
    categories = [{"id": 3, "name": "red"}, {"id": 7, "name": "green"}]
    coco(folder / "annotations.json", annotations, images=images, categories=categories)
    return folder


def voc_folder(folder: Path) -> Path:
    for file, (x1, y1, x2, y2), kind in rectangles(folder / "JPEGImages"):
        voc(
            folder / "Annotations" / f"{file.stem}.xml",
            (kind, (x1 + 1, y1 + 1, x2, y2)),
            size=f"{SIDE} {SIDE}",
        )
    return folder


def mask_folder(folder: Path) -> Path:
    for file, (x1, y1, x2, y2), kind in rectangles(folder / "images"):
        values = np.zeros((SIDE, SIDE), np.uint8)
        values[y1:y2, x1:x2] = 1 + ("red", "green").index(kind)
        mask(folder / "masks" / file.name, values.tolist(), "P")
    (folder / "classes.txt").write_text("background\nred\ngreen\n")
    return folder


SMALL = ("--backbone", "mobilenet_v1", "--option", "width=0.25", "--epochs", 1, "--batch-size", 4, "--workers", 0)
FEW = tuple(
    part
    for option in (
        "rpn_post_nms_top_n_train=50",
        "rpn_post_nms_top_n_test=50",
        "box_batch_size_per_image=16",
        "box_detections_per_img=4",
    )
    for part in ("--option", option)
)
PYRAMID = ("--option", "out_channels=32", "--size", SIDE)


@pytest.mark.parametrize(
    ("data", "head", "arguments", "measure", "classes"),
    [
        (coco_folder, "ssdlite", ("--size", SIDE), "mAP", ("background", "red", "green")),
        (coco_folder, "mask_rcnn", (*PYRAMID, *FEW), "mAP", ("background", "red", "green")),
        (voc_folder, "retinanet", PYRAMID, "mAP", ("green", "red")),
        (mask_folder, "lraspp", ("--size", SIDE), "mIoU", ("background", "red", "green")),
        (mask_folder, "deeplab_v3", ("--size", SIDE), "mIoU", ("background", "red", "green")),
    ],
    ids=["COCO, ssdlite", "COCO, mask_rcnn", "VOC, retinanet", "masks, lraspp", "masks, deeplab_v3"],
)
def test_every_task_trains_evaluates_predicts_and_resumes(
    run: Run,
    tmp_path: Path,
    data: Callable[[Path], Path],
    head: str,
    arguments: tuple[Any, ...],
    measure: str,
    classes: tuple[str, ...],
) -> None:
    folder, out = data(tmp_path / "data"), tmp_path / "run"
    ran = run("train", folder, "--head", head, *SMALL, *arguments, "--out", out)
    assert ran.status == 0, ran.err
    assert "best epoch: " in ran.out
    weights = out / "best.safetensors"
    said = registry.load(weights).description
    assert isinstance(said, Description)
    assert (said.head, said.classes) == (head, classes)
    assert {"predictions.png", "curves.png", "per-class.csv", "history.csv", "metrics.json"} <= {
        path.name for path in out.iterdir()
    }
    detections = {"predictions.json", "objects.json", "precision-recall.png", "confusion.png"}
    assert (detections <= {path.name for path in out.iterdir()}) is (measure == "mAP")

    judged = json.loads(run("evaluate", folder, "--weights", weights, "--json").out)
    assert next(iter(judged["scores"])) == measure
    # The background is a class of the data for segmentation but not for detection.
    assert {row["class"] for row in judged["per_class"]} == set(classes if measure == "mIoU" else ("red", "green"))

    (picture, *_) = sorted((folder / ("JPEGImages" if data is voc_folder else "images")).iterdir())
    asked = run("predict", picture, "--weights", weights, "--json", "--out", tmp_path / "drawn")
    assert asked.status == 0, asked.err
    (answer,) = json.loads(asked.out)
    assert {found["class"] for found in answer["predictions"]} <= set(classes)
    assert Path(answer["picture"]).exists()

    more = run("train", "--resume", out, "--epochs", 2)
    assert more.status == 0, more.err
    assert (out / "history.csv").read_text().count("\n") == 3


@pytest.mark.parametrize("name", ["timm/resnet10t", "mobilenet_v3_small"])
def test_any_backbone_can_be_trained(run: Run, tmp_path: Path, name: str) -> None:
    data = classes_of(tmp_path / "data", cat=6, dog=6)
    more = ("--size", 32, "--epochs", 1, "--batch-size", 4, "--workers", 0, "--freeze", "C2", "--out", tmp_path / "run")
    ran = run("train", data, "--backbone", name, *more)
    assert ran.status == 0, ran.err
    assert run("evaluate", data, "--weights", tmp_path / "run" / "best.safetensors").status == 0
