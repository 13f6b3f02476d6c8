"""The prediction page of a run: captioned tiles, mistakes first, predicted boxes and masks next to the ground truth."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from support.pictures import has_colour, has_white_edges, read_pixels
from torch import nn

from featuretap.registry import Registry
from featuretap.workflows.datasets.data_set import IGNORED, Boxes
from featuretap.workflows.inference.drawing import color_of
from featuretap.workflows.training.reports import _arrange, _fit, _tile, draw_predictions

GREEN, RED, WHITE = (0, 140, 60), (210, 30, 30), (255, 255, 255)
TILE = 160
"""Pixels of a side of a classified image."""


# Tiles


def test_small_images_are_enlarged_without_blur() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 5, 3), np.uint8))
    large = _fit(image, 160)
    assert large.size == (100, 160)
    assert np.array_equal(np.asarray(large)[::20, ::20], np.asarray(image))
    assert len(np.unique(np.asarray(large).reshape(-1, 3), axis=0)) == 40


@pytest.mark.parametrize(("size", "shown"), [((600, 400), (160, 107)), ((3000, 1), (160, 1)), ((161, 160), (160, 159))])
def test_large_images_are_shrunk_and_keep_their_shape(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert _fit(Image.new("RGB", size), 160).size == shown


def test_captions_that_are_too_long_end_before_the_edge() -> None:
    image = Image.new("RGB", (160, 80), "blue")
    for line in (
        "a name that is much longer than there is room for on a tile of this size",
        "WWWWWWWWWWWWWWWWWWWWWWWW",
    ):
        tile = np.asarray(_tile(image, 160, [(line, ""), (line, " 0.95")], GREEN))
        words = tile[88:] < 250
        assert words.any(axis=2)[:, 100:160].any()
        assert not words[:, 165:].any()
        assert not words[-1:].any()


# Page


@dataclass
class Given:
    """An in-memory sample."""

    image: Image.Image
    target: Any
    name: str

    @property
    def label(self) -> int | None:
        return self.target if isinstance(self.target, int) else None

    def read(self) -> tuple[Image.Image, Any]:
        return self.image, self.target

    def check(self) -> str:
        return ""


def in_memory(items: list[tuple[Image.Image, Any]]) -> list[Given]:
    return [Given(*item, f"a/long/way/to/{index}.png") for index, item in enumerate(items)]


CLASSES = ("one", "two", "three")


def sure_of(model: nn.Module, label: int) -> nn.Module:
    """Make a classifier or segmenter predict the same class everywhere."""
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():  # type: ignore[union-attr]
            if len(parameter) == len(CLASSES):
                parameter.zero_()
                if name.endswith("bias"):
                    parameter[label] = 3.0
    return model


def classifier(registry: Registry, label: int, channels: int = 3) -> nn.Module:
    model = registry.build("mobilenet_v3_small", num_classes=3, width=0.25, in_channels=channels)
    model.description = replace(model.description, classes=CLASSES)
    return sure_of(model, label)


def frames(page: NDArray[np.uint8]) -> list[str]:
    """Return the frame colors of the tiles, row by row."""
    found = []
    for top in range(6, page.shape[0] - TILE, TILE + 8 + 2 * 17 + 6):
        for left in range(6, page.shape[1] - TILE, TILE + 8 + 6):
            corner = tuple(page[top + 4 + TILE + 2, left + 80].tolist())
            found.append({GREEN: "green", RED: "red", WHITE: "none"}[corner])
    return found


def test_mistakes_come_first_in_red_and_correct_predictions_follow_in_green(registry: Registry, tmp_path: Path) -> None:
    truths = [1, 0, 1, 1, 2, 1]
    samples = in_memory([(Image.new("L", (8, 8), 40 * index), truth) for index, truth in enumerate(truths)])
    model = classifier(registry, 1, channels=1).train()
    draw_predictions(model, samples, CLASSES, tmp_path / "page.png")
    assert model.training
    page = read_pixels(tmp_path / "page.png")
    assert page.shape == (6 + 208, 6 + 6 * 174, 3)
    assert frames(page) == ["red"] * 2 + ["green"] * 4
    middles = [int(page[80, 6 + 84 + 174 * place, 0]) for place in range(6)]
    assert middles == [40, 160, 0, 80, 120, 200]
    assert has_white_edges(page)


def test_photographs_of_any_shape_are_shown_uncropped(registry: Registry, tmp_path: Path) -> None:
    cat = Image.fromarray(data.chelsea())
    sizes = [(600, 400), (400, 600), (900, 100), (30, 20)]
    samples = in_memory([(cat.resize(size), index % 3) for index, size in enumerate(sizes)])
    draw_predictions(classifier(registry, 0), samples, CLASSES, tmp_path / "page.png")
    page = read_pixels(tmp_path / "page.png")
    assert frames(page).count("green") == 2
    assert frames(page).count("red") == 2
    assert has_white_edges(page)


@pytest.mark.parametrize(
    ("wrong", "right", "shown"), [(40, 40, (24, 8)), (40, 3, (29, 3)), (5, 40, (5, 27)), (0, 40, (0, 32))]
)
def test_a_page_has_room_for_mistakes_and_correct_predictions(
    wrong: int, right: int, shown: tuple[int, int], registry: Registry, tmp_path: Path
) -> None:
    samples = in_memory([(Image.new("RGB", (8, 8)), 0)] * wrong + [(Image.new("RGB", (8, 8)), 2)] * right)
    draw_predictions(classifier(registry, 2), samples, CLASSES, tmp_path / "page.png")
    found = frames(read_pixels(tmp_path / "page.png"))
    assert (found.count("red"), found.count("green")) == shown


def test_boxes_are_drawn_in_the_colours_of_the_models_classes(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v3_small", head="ssdlite", num_classes=4, width=0.25, size=96).eval()
    model.description = replace(model.description, classes=("background", *CLASSES))
    boxes = np.array([[50, 100, 150, 200], [210, 220, 390, 390]], np.float32)
    found = Boxes(boxes, np.array([0, 2]), np.array([False, True]))
    samples = in_memory([(Image.new("RGB", (400, 400), "white"), found)] * 3)
    draw_predictions(model, samples, CLASSES, tmp_path / "page.png")
    page = read_pixels(tmp_path / "page.png")
    # Three pairs of tiles: two in the first row, one in the second.
    assert page.shape == (6 + 2 * (408 + 28 + 6), 6 + 4 * 414, 3)
    truth, prediction = page[10:410, 10:410], page[10:410, 424:824]
    # The background is the model's first class. Ignored objects are not drawn.
    assert has_colour(truth, color_of(1))[140:160, 48:53].any()
    assert not has_colour(truth, color_of(3)).any()
    assert not has_colour(truth, color_of(0)).any()
    assert (prediction == 255).all()


def test_a_page_of_wide_photographs_has_no_empty_area_above_them(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v3_small", head="ssdlite", num_classes=4, width=0.25, size=96).eval()
    model.description = replace(model.description, classes=("background", *CLASSES))
    nothing = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    samples = in_memory([(Image.new("RGB", (400, 100), "black"), nothing)] * 2)
    draw_predictions(model, samples, CLASSES, tmp_path / "page.png")
    page = read_pixels(tmp_path / "page.png")
    assert page.shape == (6 + 108 + 28 + 6, 6 + 4 * 414, 3)
    assert (page[10:110, 10:410] == 0).all()


def test_rows_are_as_high_as_their_tiles() -> None:
    tiles = [Image.new("RGB", size, "black") for size in ((20, 40), (10, 10), (20, 15))]
    page = np.asarray(_arrange(tiles, 2))
    assert page.shape == (6 + 40 + 6 + 15 + 6, 6 + 2 * 26, 3)
    black = (page == 0).all(-1)
    # Tiles of a row are aligned at the bottom, above their captions.
    assert black[6:46, 6:26].all()
    assert black[36:46, 32:42].all()
    assert black[52:67, 6:26].all()
    assert black.sum() == sum(tile.width * tile.height for tile in tiles)


def test_the_score_follows_the_name_and_is_never_cut() -> None:
    image = Image.new("RGB", (160, 80), "blue")
    short, long = (np.asarray(_tile(image, 160, [(name, " 0.95")]))[88:] for name in ("cat", "cat" * 30))
    assert short.shape == long.shape
    # A long name starts at the same position as a short one, and its score ends at the right edge.
    assert np.array_equal(short[:, :22], long[:, :22])
    assert (long[:, 140:165] < 250).any()
    assert (short[:, 80:] == 255).all()


def test_predicted_boxes_are_drawn_beside_the_truth(registry: Registry, tmp_path: Path) -> None:
    model = registry.build(
        "mobilenet_v3_small", head="retinanet", num_classes=3, width=0.25, min_size=64, max_size=64
    ).eval()
    model.description = replace(model.description, classes=CLASSES)
    with torch.no_grad():
        model.head.predictor.classification_head.cls_logits.bias.copy_(torch.tensor([-9.0, 3.0, -9.0]).repeat(9))
    nothing = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    draw_predictions(model, in_memory([(Image.new("RGB", (400, 400)), nothing)]), CLASSES, tmp_path / "page.png")
    page = read_pixels(tmp_path / "page.png")
    assert not has_colour(page[10:410, 10:410], color_of(1)).any()
    assert has_colour(page[10:410, 424:824], color_of(1)).any()


def test_pixels_are_drawn_as_image_truth_and_prediction(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v3_small", head="lraspp", num_classes=3, width=0.25).eval()
    resized = replace(model.description.preprocessing, resize=64)
    model.description = replace(model.description, classes=CLASSES, preprocessing=resized)
    mask = np.zeros((400, 400), np.uint8)
    mask[:, 200:] = 1
    mask[:200, :100] = IGNORED
    samples = in_memory([(Image.new("RGB", (400, 400)), mask)] * 9)
    draw_predictions(sure_of(model, 2), samples, CLASSES, tmp_path / "page.png")
    page = read_pixels(tmp_path / "page.png")
    # Eight of the nine images, two per row, each 400 pixels high with its legend.
    across, rest = divmod(page.shape[1] - 6, 6)
    assert (page.shape[0], rest) == (6 + 4 * (408 + 28 + 6), 0)
    image, truth, prediction = (
        page[10:410, left : left + across - 14].astype(int) for left in (10, 10 + across, 10 + 2 * across)
    )
    # The photograph is black and has the same position in all three tiles, whatever is below it.
    black = np.argwhere(image.sum(-1) == 0)
    (top, left), (bottom, right) = black.min(0), black.max(0)
    assert 300**2 < len(black) > 0.99 * (bottom - top + 1) * (right - left + 1)

    def at(tile: Any, row: int, column: int) -> Any:
        """Return the color at a position given in the coordinates of the 400×400 photograph."""
        return tile[top + row * (bottom - top) // 400, left + column * (right - left) // 400]

    halves = {tuple(at(truth, 100, column)) for column in (60, 150)} | {tuple(at(truth, 300, x)) for x in (60, 340)}
    first, second, third = (np.array(color_of(label)) // 2 for label in range(3))
    assert np.abs(at(truth, 200, 300) - second).max() <= 1
    assert np.abs(at(truth, 250, 130) - first).max() <= 1
    assert at(truth, 100, 60).tolist() == [0, 0, 0]
    assert len(halves) == 3
    assert np.abs(at(prediction, 100, 60) - third).max() <= 1
    assert np.abs(at(prediction, 300, 300) - third).max() <= 1
