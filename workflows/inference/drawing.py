"""Boxes, masks and classes drawn on photographs, for people. Drawn by torchvision; the words are ours."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import max_pool2d
from torchvision.transforms.v2 import functional as F  # noqa: N812 - torchvision's own name for it
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from featuretap.support.text import one_line
from featuretap.workflows.inference.class_names import name_of

__all__ = ["colour_of", "draw_boxes", "draw_classes", "draw_words"]

Colour = tuple[int, int, int]
Entry = tuple[Colour | None, str]
"""A line of text, or a part of one, behind a patch of a colour or behind none."""

BACKGROUNDS = frozenset({"background", "__background__"})
"""Names of classes that are nothing in particular; the photograph stays as it is there."""

LEAST_SIDE = 320
"""Pixels of the longer side, up to which small images are enlarged so that words on them can be read."""

OPACITY = 0.5
LONGEST = 40
"""Characters of a name that are drawn at most."""

LISTED = 20
"""Classes that a legend names at most: those with the most pixels."""

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
GOLDEN = 0.618034
"""Steps of the golden ratio around the circle of hues stay apart, however many there are."""


def colour_of(label: int) -> Colour:
    """Return the colour of a class as red, green and blue, always the same for the same label."""
    brightness, saturation = ((1.0, 0.8), (0.75, 1.0), (1.0, 0.45))[label // 7 % 3]
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, saturation, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: Image.Image,
    boxes: ArrayLike,
    labels: ArrayLike,
    scores: ArrayLike | None,
    classes: Sequence[str],
    masks: ArrayLike | None = None,
) -> Image.Image:
    """Return an image with boxes, the names of what is in them, and masks, the surest on top.

    Args:
        image: RGB, of H×W pixels.
        boxes: (M, 4) as x1, y1, x2, y2 in pixels of the image.
        labels: (M,), places in `classes`.
        scores: (M,) from 0 to 1, or None where there are none, as of annotations.
        classes: name of every class; what is beyond them is called by its number.
        masks: (M, H, W), over 0.5 where the object is.

    Returns:
        an RGB image, enlarged by a whole number where it is smaller than 320 pixels.
    """
    numbers = [int(label) for label in np.asarray(labels)]
    shown = [None] * len(numbers) if scores is None else [float(score) for score in np.asarray(scores)]
    order = sorted(range(len(numbers)), key=lambda place: shown[place] or 0.0)
    drawn, factor = _enlarged(image)
    if not order:
        return drawn
    canvas = F.pil_to_tensor(drawn)
    colours = [colour_of(numbers[place]) for place in order]
    corners = (np.asarray(boxes, dtype=np.float32).reshape(-1, 4) * factor)[order]
    if masks is not None:
        found = (np.asarray(masks) > 0.5)[order].repeat(factor, -2).repeat(factor, -1)
        # One at a time, since torchvision blackens where several meet.
        for mask, colour in zip(found, colours, strict=True):
            canvas = draw_segmentation_masks(canvas, torch.from_numpy(mask), OPACITY, [colour])
    width = max(2, round(max(drawn.size) / 300))
    canvas = draw_bounding_boxes(canvas, torch.from_numpy(corners), colors=colours, width=width)
    page = _picture(canvas)
    pen, font = ImageDraw.Draw(page), _font(page)
    for place, (left, top, _, _), colour in zip(order, corners.tolist(), colours, strict=True):
        score, name = shown[place], _short(name_of(numbers[place], classes))
        _label(pen, font, (left, top), name if score is None else f"{name} {score:.2f}", colour)
    return page


def draw_classes(image: Image.Image, mask: NDArray[np.integer], classes: Sequence[str]) -> Image.Image:
    """Return an image with the classes of its pixels in colour, above a legend of those that occur.

    Args:
        image: RGB, of H×W pixels.
        mask: (H, W), the class of each pixel. The background and numbers beyond `classes` are not coloured.
        classes: name of every class.

    Returns:
        an RGB image with a strip below, enlarged by a whole number where it is smaller than 320 pixels.
    """
    drawn, factor = _enlarged(image)
    numbers, pixels = np.unique(mask, return_counts=True)
    found = [
        int(number)
        for number in numbers[np.argsort(-pixels, kind="stable")]
        if 0 <= number < len(classes) and classes[number] not in BACKGROUNDS
    ]
    if found:
        large = mask.repeat(factor, 0).repeat(factor, 1)
        areas = torch.from_numpy(np.stack([large == number for number in found]))
        colours = [colour_of(number) for number in found]
        canvas = draw_segmentation_masks(F.pil_to_tensor(drawn), areas, OPACITY, colours)
        drawn = _picture(_outlined(canvas, areas, colours))
    entries: list[Entry] = [(colour_of(number), _short(name_of(number, classes))) for number in found[:LISTED]]
    if len(found) > LISTED:
        entries.append((None, f"and {len(found) - LISTED} more"))
    return _above_legend(drawn, entries or [(None, "nothing but background")])


def draw_words(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Return an image above lines of text, enlarged by a whole number where it is smaller than 320 pixels."""
    drawn, _ = _enlarged(image)
    return _above(drawn, [[(None, _short(line))] for line in lines])


def _outlined(canvas: Tensor, areas: Tensor, colours: Sequence[Colour]) -> Tensor:
    """Draw the edges of areas in the very colours of the legend, which on a photograph are mixed with its own."""
    width = max(1, round(max(canvas.shape[-2:]) / 300))
    for area, colour in zip(areas, colours, strict=True):
        inside = -max_pool2d(-area[None].float(), 2 * width + 1, stride=1, padding=width)[0] > 0
        canvas[:, area & ~inside] = torch.tensor(colour, dtype=torch.uint8)[:, None]
    return canvas


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _enlarged(image: Image.Image) -> tuple[Image.Image, int]:
    factor = max(1, -(-LEAST_SIDE // max(image.size)))
    size = image.width * factor, image.height * factor
    return (image.resize(size, Image.Resampling.NEAREST) if factor > 1 else image.copy()), factor


def _picture(canvas: Tensor) -> Image.Image:
    picture: Image.Image = F.to_pil_image(canvas)
    return picture


def _font(page: Image.Image) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=max(14, round(max(page.size) / 45)))


def _label(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    corner: tuple[float, float],
    text: str,
    colour: Colour,
) -> None:
    """Write a text on its colour above a corner of a box, and inside the picture wherever that fits."""
    width, height = pen.im.size
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    margin = max(2, round((bottom - top) / 6))
    across, down = right - left + 2 * margin, bottom - top + 2 * margin
    x = max(0, min(corner[0], width - across))
    y = corner[1] - down if corner[1] >= down else max(0, min(corner[1], height - down))
    pen.rectangle((x, y, x + across, y + down), fill=colour)
    pen.text((x + margin - left, y + margin - top), text, fill=_readable_on(colour), font=font)


def _readable_on(colour: Colour) -> Colour:
    red, green, blue = colour
    # Luminance as television weighs it (ITU-R BT.601).
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else WHITE


def _above_legend(picture: Image.Image, entries: Sequence[Entry]) -> Image.Image:
    """Return a picture above its legend, as many entries a line as there is room for."""
    pen, font = ImageDraw.Draw(picture), _font(picture)
    lines: list[list[Entry]] = [[]]
    used = 0.0
    for entry in entries:
        needed = pen.textlength(entry[1], font=font) + 3 * _line_height(font)
        if used + needed > picture.width and lines[-1]:
            lines.append([])
            used = 0.0
        lines[-1].append(entry)
        used += needed
    return _above(picture, lines)


def _above(picture: Image.Image, lines: Sequence[Sequence[Entry]]) -> Image.Image:
    font = _font(picture)
    height = _line_height(font)
    margin = height // 3
    size = max(picture.width, LEAST_SIDE), picture.height + len(lines) * (height + margin) + margin
    page = Image.new("RGB", size, WHITE)
    page.paste(picture)
    pen = ImageDraw.Draw(page)
    for row, line in enumerate(lines):
        x, y = float(margin), picture.height + margin + row * (height + margin)
        for colour, text in line:
            if colour is not None:
                pen.rectangle((x, y, x + height, y + height), fill=colour)
                x += height + margin
            pen.text((x, y + height / 2), text, fill=BLACK, font=font, anchor="lm")
            x += pen.textlength(text, font=font) + height
    return page


def _line_height(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    _, _, _, bottom = font.getbbox("Ag")
    return round(bottom)
