"""The feature maps of one image, drawn: one panel per tap, its channels reduced to three colours."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from featuretap.runtimes.preparing import normalise
from featuretap.specs.preprocessing import PICTURE_MODES, check_channels
from featuretap.support.images import convert_mode
from featuretap.workflows.inference.predictor import Predictor

SHORTER_SIDE = 224
LONGEST = 4
"""Ratio of the sides from which an image is squeezed, so that a strip one pixel high does not become gigantic."""
COLUMNS = 3
MARGIN = 16
TITLE = 28
PANEL_WIDTH = 320

Maps = dict[str, NDArray[np.float32]]


def compute_maps(
    image: Image.Image, backbone: Predictor, size: tuple[int, int] | None = None
) -> tuple[Image.Image, Maps]:
    """Return the resized image, and its maps (C, H, W).

    The image is not cropped. Its shorter side is resized to 224 pixels unless a size (height, width) is given.

    Raises:
        OptionError: the backbone's images have neither one nor three channels.
    """
    preprocessing = backbone.description.preprocessing
    check_channels(preprocessing, repr(backbone.description.name))
    image = convert_mode(image, PICTURE_MODES[len(preprocessing.mean)])
    scale = SHORTER_SIDE / min(image.size)
    height, width = size or (min(round(side * scale), LONGEST * SHORTER_SIDE) for side in (image.height, image.width))
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    maps = backbone(normalise(resized, preprocessing))
    return resized, {name: values[0] for name, values in maps.items()}


def reduce_to_colours(feature: NDArray[np.float32]) -> Image.Image:
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


def draw_maps(image: Image.Image, maps: Mapping[str, NDArray[np.float32]], strides: Mapping[str, int]) -> Image.Image:
    """Return a page with the image and one panel per map, titled with name, channels and stride."""
    panels = [(f"image  {image.height}x{image.width}", image)]
    panels += [
        (f"{name}  {feature.shape[0]} channels, stride {strides[name]}", reduce_to_colours(feature))
        for name, feature in maps.items()
    ]
    columns = min(COLUMNS, len(panels))
    panel_height = max(1, round(PANEL_WIDTH * image.height / image.width))
    across, down = PANEL_WIDTH + MARGIN, panel_height + TITLE + MARGIN
    rows = -(-len(panels) // columns)
    page = Image.new("RGB", (columns * across + MARGIN, rows * down + MARGIN), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=17)
    for index, (title, panel) in enumerate(panels):
        left, top = MARGIN + index % columns * across, MARGIN + index // columns * down
        pen.text((left, top), title, fill="black", font=font)
        # Maps are enlarged without smoothing, so that each of their pixels can be seen.
        method = Image.Resampling.LANCZOS if panel is image else Image.Resampling.NEAREST
        page.paste(panel.resize((PANEL_WIDTH, panel_height), method), (left, top + TITLE))
    return page
