"""Boxes, masks and classes drawn on photographs, with their names."""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from featuretap.specs.class_names import name_of
from featuretap.support.text import one_line

Color = tuple[int, int, int]
Entry = tuple[Color | None, str]
"""Text, behind a patch of a color if any."""
Area = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

BACKGROUNDS = frozenset({"background", "__background__"})
"""Names of classes whose pixels are not colored."""

MINIMUM_SIDE = 320
"""Pixels of the longer side to which small images are enlarged, so that text on them can be read."""

MINIMUM_TEXT, TEXT_RATIO = 14, 36
"""Font size: a fraction of the longer side, so that text can be read on a reduced picture, but at least 14 pixels."""

MAXIMUM_LENGTH = 40
"""Characters of a name."""

MAXIMUM_CLASSES = 20
"""Classes in a legend: those with the most pixels."""

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
GOLDEN = 0.618034
"""Steps of the golden ratio around the circle of hues stay apart, however many they are."""


def color_of(label: int) -> Color:
    """Return the color of a class as red, green and blue, always the same for the same label."""
    brightness, saturation = ((1.0, 0.8), (0.75, 1.0), (1.0, 0.45))[label // 7 % 3]
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, saturation, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


class Page:
    """A picture of predictions: masks and boxes on an image, with legends and other text below it.

    Args:
        image: RGB (H, W). It is enlarged by an integer factor where it is smaller than 320 pixels.
        text_size: Font size in pixels, or None for 1/36 of the longer side, and at least 14.
    """

    def __init__(self, image: Image.Image, text_size: int | None = None) -> None:
        self._picture, self._factor = _enlarge(image)
        self._font = _load_font(self._picture, text_size)
        self._paragraphs: list[list[Entry]] = []

    def add_boxes(
        self,
        boxes: ArrayLike,
        labels: ArrayLike,
        scores: ArrayLike | None,
        classes: Sequence[str],
        masks: ArrayLike | None = None,
        *,
        first_color: int = 0,
    ) -> None:
        """Draw boxes, arguments as for `draw_boxes`; `first_color` is the number of the first class's color."""
        page, numbers = self._picture, [int(label) for label in np.asarray(labels)]
        shown = [None] * len(numbers) if scores is None else [float(score) for score in np.asarray(scores)]
        order = sorted(range(len(numbers)), key=lambda place: shown[place] or 0.0)
        colors = [color_of(first_color + numbers[place]) for place in order]
        corners = (np.asarray(boxes, dtype=np.float32).reshape(-1, 4) * self._factor)[order]
        if masks is not None:
            for mask, color in zip((np.asarray(masks) > 0.5)[order], colors, strict=True):
                _blend(page, _enlarged_area(page, mask), color)
        pen, font = ImageDraw.Draw(page), self._font
        for box, color in zip(corners, colors, strict=True):
            pen.rectangle(box.tolist(), outline=color, width=max(2, round(max(page.size) / 250)))
        names = [shorten_name(name_of(numbers[place], classes)) for place in order]
        scored = ["" if shown[place] is None else f" {shown[place]:.2f}" for place in order]
        texts = [_fit_label(font, name, score, page.width) for name, score in zip(names, scored, strict=True)]
        # The highest score has the first choice of places, and is drawn last.
        areas: list[Area] = []
        for box, text in zip(corners[::-1].tolist(), texts[::-1], strict=True):
            areas.append(_place_label(pen, font, box, text, areas))
        for area, text, color in zip(areas[::-1], texts, colors, strict=True):
            _draw_label(pen, font, area, text, color)

    def add_classes(
        self, mask: NDArray[np.integer], classes: Sequence[str], *, title: str = "", first_color: int = 0
    ) -> None:
        """Color pixels by their class, arguments as for `draw_classes`; the legend begins with a title, if any."""
        page = self._picture
        numbers, pixels = np.unique(mask, return_counts=True)
        found = [
            int(number)
            for number in numbers[np.argsort(-pixels, kind="stable")]
            if 0 <= number < len(classes) and classes[number] not in BACKGROUNDS
        ]
        colors = {number: color_of(first_color + number) for number in found}
        for number, color in colors.items():
            area = _enlarged_area(page, mask == number)
            _blend(page, area, color)
            # In the color of the legend, undiluted by the photograph's.
            page.paste(color, mask=_edge_of(area))
        entries: list[Entry] = [
            (colors[number], shorten_name(name_of(number, classes))) for number in found[:MAXIMUM_CLASSES]
        ]
        if len(found) > MAXIMUM_CLASSES:
            entries.append((None, f"and {len(found) - MAXIMUM_CLASSES} more"))
        self._add_paragraph(title, entries or [(None, "nothing but background")])

    def add_text(self, lines: Sequence[str], *, title: str = "") -> None:
        """Write text below the image: a line for each, or one paragraph that begins with the title."""
        if title:
            self._add_paragraph(title, [(None, line) for line in lines])
        else:
            self._paragraphs += [[(None, line)] for line in lines]

    def finish(self) -> Image.Image:
        """Return the picture."""
        return _append_text(self._picture, self._paragraphs, self._font) if self._paragraphs else self._picture

    def _add_paragraph(self, title: str, entries: list[Entry]) -> None:
        self._paragraphs.append([(None, f"{title}:"), *entries] if title else entries)


def draw_boxes(
    image: Image.Image,
    boxes: ArrayLike,
    labels: ArrayLike,
    scores: ArrayLike | None,
    classes: Sequence[str],
    masks: ArrayLike | None = None,
) -> Image.Image:
    """Return an image with boxes, their names, and masks, the highest score on top.

    The RGB image (H, W) is enlarged by an integer factor where it is smaller than 320 pixels. Boxes are (M, 4) as x1,
    y1, x2, y2 in its pixels; labels (M,), indices in `classes`, those beyond drawn as numbers; scores (M,) from 0 to 1,
    or None for annotations; masks (M, H, W), over 0.5 where the object is.
    """
    page = Page(image)
    page.add_boxes(boxes, labels, scores, classes, masks)
    return page.finish()


def draw_classes(image: Image.Image, mask: NDArray[np.integer], classes: Sequence[str]) -> Image.Image:
    """Return an image with the classes of its pixels in color, above a legend of those that occur.

    The image is enlarged by an integer factor where it is smaller than 320 pixels. The background and labels of the
    `mask` (H, W) beyond `classes` are not colored.
    """
    page = Page(image)
    page.add_classes(mask, classes)
    return page.finish()


def draw_text(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Return an image above lines of text, enlarged by an integer factor where it is smaller than 320 pixels."""
    drawn, _ = _enlarge(image)
    return _append_text(drawn, [[(None, shorten_name(line))] for line in lines], _load_font(drawn))


def _enlarged_area(page: Image.Image, mask: NDArray[np.bool_]) -> Image.Image:
    """Return a mask (H, W) as an image of the page's size, 255 inside and 0 outside."""
    return Image.fromarray(mask.astype(np.uint8) * 255).resize(page.size, Image.Resampling.NEAREST)


def _blend(page: Image.Image, area: Image.Image, color: Color) -> None:
    """Mix the page with equal parts of a color inside an area."""
    page.paste(color, mask=area.point(lambda value: value // 2))


def _edge_of(area: Image.Image) -> Image.Image:
    """Return the pixels of an area that are next to others, 255 on a line that is wider on a larger page."""
    width, inside = max(1, round(max(area.size) / 300)), area
    for radius in ((width, 0), (0, width)):
        # Only pixels of 255 have a mean of 255; a blur costs as much at any width, a minimum filter its square.
        inside = inside.filter(ImageFilter.BoxBlur(radius)).point(lambda value: 255 * (value == 255))
    return ImageChops.subtract(area, inside)


def shorten_name(text: str) -> str:
    """Return a name in one line of at most 40 characters."""
    line = one_line(text)
    return line if len(line) <= MAXIMUM_LENGTH else f"{line[: MAXIMUM_LENGTH - 1]}…"


def _enlarge(image: Image.Image) -> tuple[Image.Image, int]:
    factor = max(1, -(-MINIMUM_SIDE // max(image.size)))
    size = image.width * factor, image.height * factor
    return (image.resize(size, Image.Resampling.NEAREST) if factor > 1 else image.copy()), factor


def _load_font(page: Image.Image, size: int | None = None) -> Font:
    return ImageFont.load_default(size=size or max(MINIMUM_TEXT, round(max(page.size) / TEXT_RATIO)))


def _fit_label(font: Font, name: str, score: str, width: int) -> str:
    """Return a name and a score, the name cut so that the label is not wider than the picture."""
    room = width - 2 * _label_margin(font.getbbox("Ag")[3])
    cut = name
    while cut and font.getlength(f"{cut}…{score}" if cut != name else f"{name}{score}") > room:
        cut = cut[:-1]
    return f"{name}{score}" if cut == name else f"{cut}…{score}"


def _place_label(pen: ImageDraw.ImageDraw, font: Font, box: Sequence[float], text: str, taken: Sequence[Area]) -> Area:
    """Return the area of the label of a box: the free one nearest to the top left corner, preferably along an edge."""
    width, height = pen.im.size
    left, top, right, bottom = map(math.ceil, pen.textbbox((0, 0), text, font=font))
    margin = _label_margin(bottom - top)
    across, down = right - left + 2 * margin, bottom - top + 2 * margin

    def at(x: float, y: float) -> Area:
        x, y = max(0, min(x, width - across)), max(0, min(y, height - down))
        return x, y, x + across, y + down

    corners = [
        at(x, y)
        for y in (box[1] - down if box[1] >= down else box[1], box[1], box[3], box[3] - down)
        for x in (box[0], box[2] - across)
    ]
    # Then along the upper and the left edge, and last anywhere, the nearest place first.
    sliding = [at(box[0] + step * down, y) for step in range(width // down) for y in (box[1] - down, box[1])]
    stacked = [at(box[0], box[1] + step * down) for step in range(height // down)]
    inside = [area for area in sliding + stacked if area[0] <= box[2] and area[1] <= box[3]]
    for areas in (corners, inside):
        free = [area for area in areas if not any(_overlap(area, other) for other in taken)]
        if free:
            return free[0]
    anywhere = [at(x, y) for x in range(0, width, max(1, across // 2)) for y in range(0, height, down)]
    anywhere.sort(key=lambda area: abs(area[0] - box[0]) + abs(area[1] - box[1]))
    return next((area for area in anywhere if not any(_overlap(area, other) for other in taken)), corners[0])


def _overlap(area: Area, other: Area) -> bool:
    return area[0] < other[2] and other[0] < area[2] and area[1] < other[3] and other[1] < area[3]


def _label_margin(height: float) -> int:
    return max(2, round(height / 6))


def _draw_label(pen: ImageDraw.ImageDraw, font: Font, area: Area, text: str, color: Color) -> None:
    """Write text on a color that fills an area."""
    left, top, _, bottom = pen.textbbox((0, 0), text, font=font)
    margin = _label_margin(bottom - top)
    pen.rectangle(area, fill=color)
    # Luminance as in ITU-R BT.601.
    fill = BLACK if np.dot(color, (0.299, 0.587, 0.114)) > 140 else WHITE
    pen.text((area[0] + margin - left, area[1] + margin - top), text, fill=fill, font=font)


def _append_text(picture: Image.Image, paragraphs: Sequence[Sequence[Entry]], font: Font) -> Image.Image:
    """Return a picture above paragraphs of entries, as many a line as fit."""
    height = round(font.getbbox("Ag")[3])
    margin = height // 3
    lines: list[list[Entry]] = []
    for entries in paragraphs:
        lines.append([])
        used = 0.0
        for entry in entries:
            needed = font.getlength(entry[1]) + 3 * height
            if lines[-1] and used + needed > picture.width:
                lines.append([])
                used = 0.0
            lines[-1].append(entry)
            used += needed
    size = max(picture.width, MINIMUM_SIDE), picture.height + len(lines) * (height + margin) + margin
    page = Image.new("RGB", size, WHITE)
    page.paste(picture)
    pen = ImageDraw.Draw(page)
    for row, line in enumerate(lines):
        x, y = float(margin), picture.height + margin + row * (height + margin)
        for color, text in line:
            if color is not None:
                pen.rectangle((x, y, x + height, y + height), fill=color)
                x += height + margin
            pen.text((x, y + height / 2), text, fill=BLACK, font=font, anchor="lm")
            x += font.getlength(text) + height
    return page
