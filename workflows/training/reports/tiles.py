"""Pictures in rows and columns, each with words below it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from featuretap.support.atomic_write import replace_files
from featuretap.support.text import one_line

__all__ = ["Colour", "arranged", "captioned", "fitted", "save_picture"]

Colour = tuple[int, int, int]

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
LETTERS, LINE = 12, 17
"""Pixels of the letters and from line to line."""

FRAME, GAP = 4, 6


def fitted(image: Image.Image, side: int) -> Image.Image:
    """Return an image of at most `side` pixels a side: shrunk, or enlarged by a whole number, without blur."""
    longer = max(image.size)
    if longer > side:
        width, height = (max(1, round(length * side / longer)) for length in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    factor = side // longer
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def captioned(image: Image.Image, side: int, lines: Sequence[str], colour: Colour | None = None) -> Image.Image:
    """Return an image at the bottom of a white square, above lines of text that are cut where they are too long.

    Args:
        image: RGB, of at most `side` pixels.
        side: pixels of the square.
        lines: of text.
        colour: of the text, and of a frame around the image; without, there is no frame, and the text is black.
    """
    tile = Image.new("RGB", (side + 2 * FRAME, side + 2 * FRAME + len(lines) * LINE), WHITE)
    left, top = FRAME + (side - image.width) // 2, FRAME + side - image.height
    pen = ImageDraw.Draw(tile)
    if colour is not None:
        corner = left + image.width + FRAME - 1, top + image.height + FRAME - 1
        pen.rectangle((left - FRAME, top - FRAME, *corner), fill=colour)
    tile.paste(image, (left, top))
    # It has more letters than Pillow's own.
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", LETTERS)
    for number, line in enumerate(lines):
        place = FRAME, side + 2 * FRAME + number * LINE
        pen.text(place, _cut(one_line(line), pen, font, side), fill=colour or BLACK, font=font)
    return tile


def arranged(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return a page of tiles of one size, row by row."""
    width, height = (length + GAP for length in tiles[0].size)
    columns = min(columns, len(tiles))
    page = Image.new("RGB", (columns * width + GAP, -(-len(tiles) // columns) * height + GAP), WHITE)
    for number, tile in enumerate(tiles):
        page.paste(tile, (GAP + number % columns * width, GAP + number // columns * height))
    return page


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG.

    Raises:
        WeightsError: the disk does not take it.
    """
    content = io.BytesIO()
    picture.save(content, format="png")
    replace_files({path: content.getvalue()})


def _cut(text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, width: int) -> str:
    cut = text
    while cut and pen.textlength(cut if cut == text else f"{cut}…", font=font) > width:
        cut = cut[:-1]
    return cut if cut == text else f"{cut}…"
