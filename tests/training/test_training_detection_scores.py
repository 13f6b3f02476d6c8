"""Detection metrics: mean average precision of boxes and masks, overall and per class."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from support.data_sets import a_box, coco, picture
from support.detection_samples import CLASSES, SCENE, detection_task, evaluate, make_prediction, paint, random_pairs
from torchmetrics.detection import MeanAveragePrecision

from featuretap.workflows.datasets.data_set import with_classes
from featuretap.workflows.datasets.formats import open_data
from featuretap.workflows.training.reports import write_detections
from featuretap.workflows.training.tasks.detection import DETAILS
from featuretap.workflows.training.tasks.task import ClassScore


@pytest.mark.parametrize("offset", [0, 1])
def test_perfect_predictions_have_a_score_of_1(offset: int) -> None:
    right = [(label, box, 0.9) for label, box in SCENE]
    metrics = evaluate(detection_task(first_label=offset), (paint(*SCENE), make_prediction(*right, offset=offset)))
    assert metrics.scores == {"mAP": 1, "mAP@0.5": 1, "mAP@0.75": 1}
    assert next(iter(metrics.scores)) == "mAP"
    assert metrics.per_class == (("red", 1, 1.0), ("green", 1, 1.0), ("blue", 1, 1.0))
    assert metrics.confusion.tolist() == np.diag([1, 1, 1, 0]).tolist()
    assert metrics.precisions.tolist() == np.ones((3, 101)).tolist()


def test_labels_that_are_one_off_have_a_score_of_0() -> None:
    wrong = make_prediction(*((label, box, 0.9) for label, box in SCENE[:2]), offset=0)
    metrics = evaluate(detection_task(first_label=1), (paint(*SCENE[:2]), wrong))
    assert metrics.scores["mAP"] == 0


def test_scores_equal_a_calculation_by_hand() -> None:
    """Compare the scores with values calculated by hand.

    Red: one of two objects is found, ranked after a false positive. The precision is 1/2 at the 51 recall points up to
    0.5, and 0 at the others.

    Green: the predicted box covers 35.5 of 40 rows, an IoU of 0.8875.
    """
    scene = paint((0, (0, 0, 20, 20)), (0, (60, 40, 80, 60)), SCENE[1])
    left, top, right, bottom = SCENE[1][1]
    found = make_prediction(
        (0, (30, 0, 50, 20), 0.9), (0, (0, 0, 20, 20), 0.8), (1, (left, top, right, bottom - 4.5), 0.7)
    )
    metrics = evaluate(detection_task(), (scene, found))
    red, green, blue = metrics.per_class
    assert (red.occurrences, green.occurrences, blue.occurrences) == (2, 1, 0)
    assert red.score == pytest.approx(51 / 101 / 2)
    # 0.8875 exceeds eight of the ten IoU thresholds from 0.5 to 0.95.
    assert green.score == pytest.approx(0.8)
    assert math.isnan(blue.score)
    assert metrics.scores["mAP"] == pytest.approx((51 / 101 / 2 + 0.8) / 2)
    assert metrics.scores["mAP@0.5"] == pytest.approx((51 / 101 / 2 + 1) / 2)


def test_scores_equal_those_of_torchmetrics() -> None:
    pairs = random_pairs(12)
    metrics = evaluate(detection_task(), *pairs)
    metric = MeanAveragePrecision(class_metrics=True, backend="faster_coco_eval")
    for (_, boxes), found in pairs:
        target = {"boxes": torch.tensor(boxes.boxes), "labels": torch.tensor(boxes.labels)}
        metric.update([{**found, "labels": found["labels"] - 1}], [target])
    result = metric.compute()
    assert list(metrics.scores.values()) == pytest.approx([float(result[name]) for name in ("map", "map_50", "map_75")])
    assert [row.score for row in metrics.per_class] == pytest.approx(result["map_per_class"].tolist())
    assert 0 < metrics.scores["mAP"] < 1
    assert [row.occurrences for row in metrics.per_class] == [9, 6, 3]


def test_details_are_the_rest_of_cocos_twelve_metrics() -> None:
    pairs = random_pairs(12)
    metrics = evaluate(detection_task(), *pairs)
    metric = MeanAveragePrecision(backend="faster_coco_eval")
    for (_, boxes), found in pairs:
        target = {"boxes": torch.tensor(boxes.boxes), "labels": torch.tensor(boxes.labels)}
        metric.update([{**found, "labels": found["labels"] - 1}], [target])
    result = metric.compute()
    assert len({**metrics.scores, **metrics.details}) == 12
    expected = {name: float(result[key]) for name, key in DETAILS.items()}
    assert metrics.details == pytest.approx(
        {name: math.nan if value < 0 else value for name, value in expected.items()}, nan_ok=True
    )


def test_the_confusion_matrix_matches_objects_of_any_class() -> None:
    """The red object is predicted as green, the green object is missed, and the blue object is found twice."""
    scene = paint(*SCENE)
    red, green, blue = (box for _, box in SCENE)
    found = make_prediction((1, red, 0.9), (2, blue, 0.8), (2, blue, 0.7), (1, green, 0.2))
    assert evaluate(detection_task(), (scene, found)).confusion.tolist() == [
        [0, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 1, 0],
        [0, 0, 1, 0],
    ]


def test_a_prediction_of_an_ignored_object_is_not_confused() -> None:
    image, objects = paint(SCENE[0])
    ignored = image, objects._replace(ignored=np.array([True]))
    assert evaluate(detection_task(), (ignored, make_prediction((1, SCENE[0][1], 0.9)))).confusion.sum() == 0


@pytest.mark.parametrize(("masks", "kind"), [(False, "bbox"), (True, "segm")])
def test_written_predictions_have_the_same_scores_in_cocos_tools(tmp_path: Path, masks: bool, kind: str) -> None:
    pairs = random_pairs(12, masks=masks)
    metrics = evaluate(detection_task(masks=masks), *pairs)
    samples: list[Any] = []
    for number, ((image, _), _) in enumerate(pairs):
        image.save(tmp_path / f"{number}.png")
        samples.append(SimpleNamespace(name=str(tmp_path / f"{number}.png")))
    write_detections(tmp_path, CLASSES, samples, metrics)
    truth = COCO(str(tmp_path / "objects.json"))
    evaluation = COCOeval_faster(truth, truth.loadRes(str(tmp_path / "predictions.json")), kind)
    evaluation.run()
    assert evaluation.stats[0] == pytest.approx(metrics.scores["mask mAP" if masks else "mAP"], abs=1e-6)
    images = json.loads((tmp_path / "objects.json").read_text())["images"]
    assert images[3] == {"id": 4, "file_name": str(tmp_path / "3.png"), "width": 90, "height": 60}


IMAGE_IDS = (907, 12, 5000, 3, 44, 45, 800, 100000)
CATEGORY_IDS = {"red": 90, "green": 4, "blue": 11, "purple": 50}
MODEL_CLASSES = ("green", "black", "blue", "purple", "red")


def numbered_file(folder: Path, place: str, ids: tuple[int, ...], scenes: Any) -> Path:
    """Write images and a COCO file whose image and category ids have gaps."""
    annotations = []
    for number, (image, objects) in zip(ids, scenes, strict=True):
        picture(folder / place / f"{number}.png").unlink()
        image.save(folder / place / f"{number}.png")
        for (x1, y1, x2, y2), label in zip(objects.boxes.tolist(), objects.labels, strict=True):
            box, crowd = [x1, y1, x2 - x1, y2 - y1], len(annotations) % 7 == 5
            more = {"area": box[2] * box[3], "iscrowd": int(crowd)}
            annotations.append(a_box(len(annotations) + 20, number, box, CATEGORY_IDS[CLASSES[label]], **more))
    images = [{"id": number, "file_name": f"{number}.png", "width": 90, "height": 60} for number in ids]
    categories = [{"id": number, "name": name} for name, number in CATEGORY_IDS.items()]
    path = folder / "annotations" / f"instances_{place}.json"
    return coco(path, annotations, images=images, categories=categories)


def test_written_predictions_are_evaluated_against_the_original_annotations(tmp_path: Path) -> None:
    pairs = dict(zip(IMAGE_IDS, random_pairs(8), strict=True))
    numbered_file(tmp_path, "train", (1,), [paint(*SCENE)])
    original = numbered_file(tmp_path, "val", IMAGE_IDS, [scene for scene, _ in pairs.values()])
    data = with_classes(open_data(str(tmp_path), "detection"), MODEL_CLASSES)
    # The model's labels start at 1.
    labels = torch.tensor([0, *(MODEL_CLASSES.index(name) + 1 for name in CLASSES)])
    predictions = [pairs[int(Path(sample.name).stem)][1] for sample in data.val]
    found = [{**each, "labels": labels[each["labels"]]} for each in predictions]
    read = [sample.read() for sample in data.val]
    metrics = evaluate(detection_task(classes=MODEL_CLASSES), *zip(read, found, strict=True))
    write_detections(tmp_path, data.classes, data.val, metrics, data.ids)
    for truth in (original, tmp_path / "objects.json"):
        truth = COCO(str(truth))
        evaluation = COCOeval_faster(truth, truth.loadRes(str(tmp_path / "predictions.json")), "bbox")
        evaluation.run()
        assert evaluation.stats[:3] == pytest.approx(list(metrics.scores.values()), abs=1e-6)
    assert 0.1 < metrics.scores["mAP"] < 0.9
    categories = json.loads((tmp_path / "objects.json").read_text())["categories"]
    # The file has no category "black".
    assert {entry["name"]: entry["id"] for entry in categories} == {**CATEGORY_IDS, "black": 91}


def test_files_that_disagree_on_ids_leave_numbers_from_1(tmp_path: Path) -> None:
    scenes = [paint(*SCENE), paint(*SCENE)]
    for place in ("train", "val"):
        numbered_file(tmp_path, place, (7, 9), scenes)
    data = open_data(str(tmp_path), "detection")
    right = make_prediction(*((label, box, 0.9) for label, box in SCENE))
    for samples, ids in ((data.val, [7, 9]), ([*data.train, *data.val], [1, 2, 3, 4])):
        task = detection_task(classes=data.classes)
        metrics = evaluate(task, *((sample.read(), right) for sample in samples))
        write_detections(tmp_path, data.classes, samples, metrics, data.ids)
        objects = json.loads((tmp_path / "objects.json").read_text())
        assert [image["id"] for image in objects["images"]] == ids
        predicted = json.loads((tmp_path / "predictions.json").read_text())
        assert sorted({each["image_id"] for each in predicted}) == ids


def test_mask_map_equals_box_map_for_masks_that_fill_their_boxes() -> None:
    pairs = random_pairs(12, masks=True)
    metrics = evaluate(detection_task(masks=True), *pairs)
    assert list(metrics.scores) == ["mAP", "mAP@0.5", "mAP@0.75", "mask mAP"]
    assert metrics.scores["mask mAP"] == metrics.scores["mAP"]
    assert metrics.scores["mAP"] == evaluate(detection_task(), *random_pairs(12)).scores["mAP"]


def test_a_mask_below_one_half_everywhere_is_empty() -> None:
    scene = paint(SCENE[0], masks=True)
    masks = torch.full((1, 1, 60, 90), 0.4)
    metrics = evaluate(detection_task(masks=True), (scene, make_prediction((0, SCENE[0][1], 0.9), masks=masks)))
    assert metrics.scores == {"mAP": 1, "mAP@0.5": 1, "mAP@0.75": 1, "mask mAP": 0}


def test_ignored_objects_count_neither_for_nor_against() -> None:
    image, found = paint(*SCENE)
    ignored = image, found._replace(ignored=np.array([False, True, False]))
    right = [(label, box, 0.9) for label, box in SCENE]
    for predicted in ([right[0], right[2]], right):
        metrics = evaluate(detection_task(), (ignored, make_prediction(*predicted)))
        assert metrics.scores["mAP"] == 1
        assert metrics.per_class[0] == ("red", 1, 1.0)
        assert metrics.per_class[1].occurrences == 0
        assert math.isnan(metrics.per_class[1].score)
    # The same image without ignored objects: the missed object lowers the score.
    assert evaluate(detection_task(), ((image, found), make_prediction(right[0], right[2]))).scores[
        "mAP"
    ] == pytest.approx(2 / 3)


def test_scores_are_nan_without_an_image_or_an_object() -> None:
    for pairs in ([], [(paint(), make_prediction())], [(paint(), make_prediction((0, (1, 1, 9, 9), 0.5)))]):
        metrics = evaluate(detection_task(), *pairs)
        assert all(math.isnan(score) for score in metrics.scores.values())
        assert [row.occurrences for row in metrics.per_class] == [0, 0, 0]
        assert all(math.isnan(row.score) for row in metrics.per_class)


def test_a_single_class_is_scored_like_several() -> None:
    metrics = evaluate(detection_task(classes=("red",)), (paint(SCENE[0]), make_prediction((0, SCENE[0][1], 0.9))))
    assert metrics.per_class == (ClassScore("red", 1, 1.0),)


def test_more_than_100_predicted_boxes_cause_no_warning() -> None:
    many = [(0, (1.0, 1.0, 9.0, 9.0), 0.1)] * 150
    metrics = evaluate(detection_task(), (paint(SCENE[0]), make_prediction((0, SCENE[0][1], 0.9), *many)))
    assert metrics.scores["mAP"] == 1


def test_predictions_in_bfloat16_are_scored() -> None:
    found = make_prediction(*((label, box, 0.9) for label, box in SCENE))
    found = {name: values.bfloat16() if values.is_floating_point() else values for name, values in found.items()}
    assert evaluate(detection_task(), (paint(*SCENE), found)).scores["mAP"] == 1


def test_scores_can_be_computed_repeatedly_and_updated_in_between() -> None:
    (sample, found), (other, missed) = (
        (paint(SCENE[0]), make_prediction((0, SCENE[0][1], 0.9))),
        (paint(SCENE[0]), make_prediction()),
    )
    measuring = detection_task().evaluator(torch.device("cpu"))
    for (image, boxes), prediction, expected in ((sample, found, 1), (other, missed, 51 / 101)):
        measuring.update([prediction], [detection_task().evaluation_transform()(image, boxes)[1]])
        assert [measuring.compute().scores["mAP"] for _ in range(2)] == pytest.approx([expected] * 2)
