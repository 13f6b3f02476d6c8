"""Drawing feature maps: one panel a tap, its channels reduced to three colours. No torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["coloured", "draw_taps"]

COLUMNS = 3
MARGIN = 16
TITLE = 28
PANEL_WIDTH = 320


def coloured(feature: NDArray[np.float32]) -> Image.Image:
    """Return a map (C, H, W) as an RGB image (H, W): its three strongest principal components over the pixels.

    Each component spans its 1st to 99th percentile. Its sign is arbitrary; the larger excursion is made bright.
    """
    channels, height, width = feature.shape
    pixels = feature.reshape(channels, -1).T.astype(np.float64)
    pixels -= pixels.mean(0)
    left, strengths, _ = np.linalg.svd(pixels, full_matrices=False)
    components = (left * strengths)[:, :3]
    components *= np.where(np.abs(components.min(0)) > components.max(0), -1, 1)
    components = np.pad(components, ((0, 0), (0, 3 - components.shape[1])))
    low, high = np.percentile(components, (1, 99), axis=0)
    # Rounding noise around a constant must not be stretched into a pattern.
    varies = high - low > 1e-6 * np.abs(feature).max()
    scaled = np.where(varies, (components - low) / np.where(varies, high - low, 1), 0)
    return Image.fromarray((scaled.clip(0, 1) * 255).round().astype(np.uint8).reshape(height, width, 3))


def draw_taps(picture: Image.Image, maps: Mapping[str, NDArray[np.float32]], strides: Mapping[str, int]) -> Image.Image:
    """Return a page with the picture and one panel a map, titled with name, channels and stride."""
    panels = [(f"image  {picture.height}x{picture.width}", picture)]
    panels += [
        (f"{name}  {feature.shape[0]} channels, stride {strides[name]}", coloured(feature))
        for name, feature in maps.items()
    ]
    columns = min(COLUMNS, len(panels))
    panel_height = max(1, round(PANEL_WIDTH * picture.height / picture.width))
    across, down = PANEL_WIDTH + MARGIN, panel_height + TITLE + MARGIN
    rows = -(-len(panels) // columns)
    page = Image.new("RGB", (columns * across + MARGIN, rows * down + MARGIN), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=17)
    for index, (title, panel) in enumerate(panels):
        left, top = MARGIN + index % columns * across, MARGIN + index // columns * down
        pen.text((left, top), title, fill="black", font=font)
        # Maps are enlarged without smoothing, so that each of their pixels can be seen.
        method = Image.Resampling.LANCZOS if panel is picture else Image.Resampling.NEAREST
        page.paste(panel.resize((PANEL_WIDTH, panel_height), method), (left, top + TITLE))
    return page
