"""Boxes, masks and class names are drawn in the right colors and positions on images of any size."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import max_pool2d
from torchvision.utils import draw_segmentation_masks

from featuretap.workflows.inference import drawing
from featuretap.workflows.inference.drawing import color_of, draw_boxes, draw_classes, draw_text

GREY = (90, 90, 90)
CLASSES = ("background", "cat", "dog")


def plain(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def mixed(colour: tuple[int, int, int]) -> np.ndarray:
    """Return the color that results from blending half of a color with the gray background."""
    return (np.array(GREY) + np.array(colour)) / 2


def test_the_colours_of_the_first_classes_can_be_told_apart() -> None:
    colours = np.array([color_of(label) for label in range(21)])
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(21)
    assert apart.min() > 60
    assert color_of(5) == color_of(5)
    assert all(0 <= value <= 255 for label in (*range(1000), 10**9) for value in color_of(label))


def test_the_edges_of_a_box_have_the_colour_of_its_class() -> None:
    drawn = np.asarray(draw_boxes(plain(400, 300), [[100, 120, 300, 250]], [2], [0.9], CLASSES))
    assert drawn.shape == (300, 400, 3)
    for x, y in ((100, 200), (300, 200), (200, 120), (200, 250)):
        assert tuple(drawn[y, x]) == color_of(2)
    for x, y in ((200, 200), (50, 200), (200, 280), (350, 50)):
        assert tuple(drawn[y, x]) == GREY
    # The name is drawn above the box, on a background of the class color.
    label = drawn[100:118, 101:150].reshape(-1, 3)
    assert (label == color_of(2)).all(1).mean() > 0.3
    assert (label != color_of(2)).any()


def test_a_name_at_the_edge_of_the_picture_stays_inside() -> None:
    drawn = np.asarray(draw_boxes(plain(400, 300), [[330, 0, 399, 299]], [1], [0.5], ("", "a rather long name")))
    ((rows, columns),) = [np.nonzero((drawn == color_of(1)).all(2))]
    # The label starts to the left of the box, where there is enough space.
    assert columns.min() < 320
    assert rows.min() == 0


Labels = list[tuple[tuple[float, float, float, float], str]]


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> Labels:
    """Record the areas and texts of the drawn labels."""
    drawn: Labels = []
    draw = drawing._draw_label

    def record(pen, font, area, text, colour):  # type: ignore[no-untyped-def]
        drawn.append((area, text))
        draw(pen, font, area, text, colour)

    monkeypatch.setattr(drawing, "_draw_label", record)
    return drawn


def overlapping(areas: list[tuple[float, float, float, float]]) -> int:
    """Return how many pairs of areas intersect."""
    pairs = ((a, b) for place, a in enumerate(areas) for b in areas[:place])
    return sum(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a, b in pairs)


MANY = np.random.default_rng(0).uniform(0, 400, (30, 2))


@pytest.mark.parametrize(
    "boxes",
    [
        [[100, 100, 300, 250]] * 2,
        [[100, 100, 300, 250]] * 9,
        [[5, 5, 100, 100], [20, 8, 120, 90], [0, 0, 399, 299]],
        [[0, 0, 3, 3], [396, 0, 399, 4], [0, 295, 4, 299], [395, 297, 399, 299], [398, 0, 399, 299]],
        np.concatenate([MANY, MANY + 60], 1),
    ],
)
@pytest.mark.parametrize("size", [(400, 300), (512, 512)])
def test_labels_stay_inside_and_do_not_hide_each_other(boxes: list, size: tuple[int, int], labels: Labels) -> None:
    scores = np.linspace(0.99, 0.3, len(boxes))
    draw_boxes(plain(*size), boxes, [index % 2 + 1 for index in range(len(boxes))], scores, CLASSES)
    areas = [area for area, _ in labels]
    assert len(areas) == len(boxes)
    assert overlapping(areas) == 0
    assert all(a[0] >= 0 and a[1] >= 0 and a[2] <= size[0] and a[3] <= size[1] for a in areas)
    assert labels[-1][1] == "cat 0.99"


def test_a_label_that_is_wider_than_the_picture_loses_the_end_of_its_name(labels: Labels) -> None:
    name = "a name of more letters than there is room for"
    draw_boxes(plain(100, 320), [[10, 10, 90, 90]], [0], [0.5], [name])
    ((area, text),) = labels
    assert area[0] >= 0
    assert area[2] <= 100
    assert text.startswith("a ")
    assert text.endswith("… 0.50")


def test_text_grows_with_the_picture(labels: Labels) -> None:
    for side in (400, 800, 4000):
        draw_boxes(plain(side, side), [[100, 100, 300, 250]], [1], [0.5], CLASSES)
    heights = [area[3] - area[1] for area, _ in labels]
    assert heights[0] < heights[1]
    assert heights[2] == pytest.approx(5 * heights[1], rel=0.2)


def test_the_box_with_the_highest_score_is_on_top() -> None:
    boxes = [[100, 100, 200, 200]] * 2
    for scores, top in (([0.9, 0.4], 1), ([0.4, 0.9], 2)):
        drawn = draw_boxes(plain(400, 300), boxes, [1, 2], scores, CLASSES)
        assert drawn.getpixel((150, 200)) == color_of(top)


def test_masks_lie_under_their_boxes_and_over_one_another() -> None:
    masks = np.zeros((2, 300, 400), np.float32)
    masks[0, 100:200, 100:200] = 0.6
    masks[1, 150:250, 150:250] = 1
    masks[1, :50] = 0.4
    boxes = [[100, 100, 200, 200], [150, 150, 250, 250]]
    drawn = np.asarray(draw_boxes(plain(400, 300), boxes, [1, 2], [0.9, 0.8], CLASSES, masks)).astype(int)
    assert np.abs(drawn[120, 120] - mixed(color_of(1))).max() <= 1
    assert np.abs(drawn[220, 220] - mixed(color_of(2))).max() <= 1
    assert drawn[175, 175].any()
    assert tuple(drawn[30, 300]) == GREY


def test_nothing_is_drawn_without_boxes() -> None:
    image = plain(400, 300)
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    for scores, masks in ((None, None), (np.zeros(0), np.zeros((0, 300, 400)))):
        drawn = draw_boxes(image, *empty, scores, CLASSES, masks)
        assert np.array_equal(np.asarray(drawn), np.asarray(image))
        assert drawn is not image


def test_the_image_itself_is_left_alone() -> None:
    image = plain(400, 300)
    draw_boxes(image, [[10, 10, 90, 90]], [1], None, CLASSES)
    draw_classes(image, np.ones((300, 400), np.int64), CLASSES)
    draw_text(image, ["cat"])
    assert image.getcolors() == [(400 * 300, GREY)]


def test_pixels_have_the_colours_of_their_classes_and_the_legend_too() -> None:
    mask = np.zeros((300, 400), np.uint8)
    mask[:100], mask[200:, :50], mask[200:, 350:] = 1, 2, 255
    drawn = np.asarray(draw_classes(plain(400, 300), mask, CLASSES)).astype(int)
    assert np.abs(drawn[50, 200] - mixed(color_of(1))).max() <= 1
    assert np.abs(drawn[250, 20] - mixed(color_of(2))).max() <= 1
    for row, column in ((150, 200), (250, 380)):
        assert tuple(drawn[row, column]) == GREY
    legend = drawn[300:].reshape(-1, 3)
    for label, shown in ((0, False), (1, True), (2, True)):
        assert (legend == color_of(label)).all(1).any() == shown


def test_only_a_class_named_background_is_left_uncoloured() -> None:
    mask = np.zeros((300, 400), np.int64)
    drawn = np.asarray(draw_classes(plain(400, 300), mask, ("road", "car"))).astype(int)
    assert np.abs(drawn[150, 200] - mixed(color_of(0))).max() <= 1
    untouched = draw_classes(plain(400, 300), mask, ("__background__", "car"))
    assert untouched.getpixel((200, 150)) == GREY


def test_a_legend_names_the_largest_of_many_classes() -> None:
    mask = np.repeat(np.arange(30), 10)[:, None].repeat(400, 1)
    mask[mask == 0] = 29
    classes = [f"class {label}" for label in range(30)]
    drawn = np.asarray(draw_classes(plain(400, 300), mask, classes))
    legend = drawn[300:].reshape(-1, 3)
    shown = [label for label in range(30) if (legend == color_of(label)).all(1).sum() > 50]
    assert shown == [*range(1, 20), 29]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (32, 24), (3000, 10), (10, 3000), (319, 320)])
def test_images_of_any_size_are_enlarged_until_text_is_legible(width: int, height: int) -> None:
    image = plain(width, height)
    drawn = draw_boxes(image, [[0, 0, width, height]], [1], [1.0], CLASSES, np.ones((1, height, width), np.uint8))
    assert max(drawn.size) >= 320
    factor, rest = divmod(drawn.width, width)
    assert (rest, drawn.height) == (0, factor * height)
    page = draw_classes(image, np.ones((height, width), np.int64), CLASSES)
    assert page.width >= 320
    assert page.height > factor * height
    assert draw_text(image, ["0.9 cat"]).height > factor * height


def test_boxes_scale_with_enlarged_images() -> None:
    drawn = draw_boxes(plain(32, 24), [[8, 6, 24, 18]], [1], None, CLASSES)
    assert drawn.size == (320, 240)
    assert drawn.getpixel((80, 150)) == drawn.getpixel((240, 150)) == color_of(1)


@pytest.mark.parametrize("name", ["", "a\nb\tc", "\x1b[31m", "žirafa", "長頸鹿 🦒", "\ud800", "n" * 10_000])
def test_any_name_can_be_drawn(name: str) -> None:
    image = plain(400, 300)
    classes = ("background", name)
    draw_boxes(image, [[10, 10, 90, 90]], [1], [0.5], classes)
    draw_classes(image, np.ones((300, 400), np.int64), classes)
    draw_text(image, [name])


def test_labels_beyond_the_names_are_drawn_as_numbers() -> None:
    image = plain(400, 300)
    assert np.array_equal(
        np.asarray(draw_boxes(image, [[50, 50, 90, 90]], [7], None, CLASSES)),
        np.asarray(draw_boxes(image, [[50, 50, 90, 90]], [7], None, [*"0123456", "class 7"])),
    )


def test_the_edge_of_a_class_has_the_colour_of_the_legend_itself() -> None:
    mask = np.zeros((400, 400), np.uint8)
    mask[100:300, 50:250] = 1
    drawn = np.asarray(draw_classes(Image.new("RGB", (400, 400), "white"), mask, ("background", "cat")))
    edge, inside = color_of(1), tuple((np.array(color_of(1)) + 255) // 2)
    assert {tuple(drawn[row, column]) for row, column in ((100, 150), (299, 150), (200, 50), (200, 249))} == {edge}
    assert np.abs(np.array(drawn[200, 150]).astype(int) - inside).max() <= 1
    assert drawn[98, 150].tolist() == [255, 255, 255]


def test_classes_look_as_torchvision_and_a_maximum_filter_draw_them() -> None:
    from skimage import data

    photograph, names = data.astronaut(), ("background", "cat", "dog")
    # Blobs that extend to the image border, some thinner than their outlines.
    blobs = np.random.default_rng(0).integers(0, 3, (40, 40), np.uint8)
    mask = np.asarray(Image.fromarray(blobs).resize((512, 512), Image.Resampling.NEAREST))
    areas = torch.from_numpy(np.stack([mask == 1, mask == 2]))
    expected = draw_segmentation_masks(
        torch.from_numpy(photograph).permute(2, 0, 1), areas, 0.5, [color_of(1), color_of(2)]
    ).permute(1, 2, 0)
    for area, label in zip(areas, (1, 2), strict=True):
        inside = -max_pool2d(-area[None].float(), 5, stride=1, padding=2)[0] > 0
        expected[area & ~inside] = torch.tensor(color_of(label), dtype=torch.uint8)
    drawn = np.asarray(draw_classes(Image.fromarray(photograph), mask, names))[:512].astype(int)
    assert np.abs(drawn - expected.numpy()).max() <= 1
