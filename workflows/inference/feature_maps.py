"""Draw the feature maps of an image: one panel per tap, with the channels reduced to three colors."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from featuretap.runtimes.preparing import normalize
from featuretap.specs.preprocessing import PICTURE_MODES, check_channels
from featuretap.support.images import convert_mode
from featuretap.workflows.inference.predictor import Predictor

SHORTER_SIDE = 224
LONGEST = 4
"""Maximum aspect ratio. More elongated images are squeezed, since a strip of one pixel's height would become huge."""
COLUMNS = 3
MARGIN = 16
PANEL_WIDTH = 320
TEXT_SIZE = 18
LINE = 1.55
"""Height of a line of a title, as a multiple of its font size."""
GRAY = (90, 90, 90)

DARKEST, BRIGHTEST, CHROMA = 0.25, 0.9, 0.14
"""Limits of the brightness and of the two hue components in OKLab. sRGB can display most of this range."""

SMALLEST_WITH_BORDER = 5
"""Minimum side of a map whose border is ignored for the limits. A smaller map has too little interior."""

OKLAB_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)

Maps = dict[str, NDArray[np.float32]]


def compute_maps(
    image: Image.Image, backbone: Predictor, size: tuple[int, int] | None = None
) -> tuple[Image.Image, Maps]:
    """Compute the feature maps of an image, which is resized but not cropped.

    Args:
        image: an image of any mode.
        backbone: the backbone.
        size: (height, width) in pixels; None resizes the shorter side to 224 pixels.

    Returns:
        The resized image, and address → map (C, H, W).

    Raises:
        OptionError: the backbone takes neither one nor three channels.
    """
    preprocessing = backbone.description.preprocessing
    check_channels(preprocessing, repr(backbone.description.name))
    image = convert_mode(image, PICTURE_MODES[len(preprocessing.mean)])
    scale = SHORTER_SIDE / min(image.size)
    height, width = size or (min(round(side * scale), LONGEST * SHORTER_SIDE) for side in (image.height, image.width))
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    maps = backbone(normalize(resized, preprocessing))
    return resized, {name: values[0] for name, values in maps.items()}


def reduce_to_colors(feature: NDArray[np.float32]) -> Image.Image:
    """Return a map (C, H, W) as an RGB image (H, W) of its three strongest principal components.

    The first component sets the brightness, the second and third set the hue (OKLab). Padding changes the values at the
    borders, so the components and their limits, the 2nd and 98th percentiles, come from the interior. Values beyond the
    limits are clipped. The sign of a component is arbitrary; the larger excursion is made bright.
    """
    channels, height, width = feature.shape
    pixels = feature.reshape(channels, -1).T.astype(np.float64)
    inside = np.zeros((height, width), bool)
    rows, columns = _border_width(height), _border_width(width)
    inside[rows : height - rows, columns : width - columns] = True
    interior = pixels[inside.ravel()]
    center = interior.mean(0)
    axes = np.linalg.svd(interior - center, full_matrices=False)[2][:3]
    components = np.pad((pixels - center) @ axes.T, ((0, 0), (0, 3 - len(axes))))
    low, high = components[inside.ravel()].min(0), components[inside.ravel()].max(0)
    components *= np.where(-low > high, -1, 1)
    low, high = np.percentile(components[inside.ravel()], (2, 98), axis=0)
    # Rounding noise around a constant must not be stretched into a pattern.
    varies = high - low > 1e-6 * np.abs(feature).max()
    scaled = ((components - low) / np.where(varies, high - low, 1)).clip(0, 1)
    brightness = np.where(varies[0], DARKEST + (BRIGHTEST - DARKEST) * scaled[:, 0], 0)
    hue = np.where(varies[1:], CHROMA * (2 * scaled[:, 1:] - 1), 0)
    colors = _convert_oklab(np.column_stack((brightness, hue)))
    return Image.fromarray((colors * 255).round().astype(np.uint8).reshape(height, width, 3))


def _border_width(length: int) -> int:
    """Return the number of pixels at each end of a side that padding is taken to affect."""
    return max(1, round(length / 16)) if length >= SMALLEST_WITH_BORDER else 0


def _convert_oklab(colors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return OKLab colors (N, 3) as sRGB from 0 to 1 (https://bottosson.github.io/posts/oklab/)."""
    linear = (colors @ OKLAB_TO_LMS.T) ** 3 @ LMS_TO_RGB.T
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def draw_maps(image: Image.Image, maps: Mapping[str, NDArray[np.float32]], strides: Mapping[str, int]) -> Image.Image:
    """Draw a page with the image and one panel per map, titled with address, channels and stride.

    Args:
        image: the image.
        maps: address → map (C, H, W).
        strides: address → stride.

    Returns:
        The page.
    """
    panels = [(f"image  {image.height}x{image.width}", image)]
    panels += [
        (f"{name}  {feature.shape[0]} channels, stride {strides[name]}", reduce_to_colors(feature))
        for name, feature in maps.items()
    ]
    return draw_panels(panels, image.height / image.width)


def draw_panels(
    panels: Sequence[tuple[str, Image.Image]],
    ratio: float,
    *,
    columns: int = COLUMNS,
    width: int = PANEL_WIDTH,
    text_size: int = TEXT_SIZE,
) -> Image.Image:
    """Draw a page of images of one size, row by row, each below its title.

    Args:
        panels: titles of one or more lines, and images. Images smaller than a panel are enlarged without smoothing, so
            that their pixels are visible.
        ratio: height of a panel divided by its width.
        columns: number of panels per row.
        width: width of a panel in pixels.
        text_size: font size of the titles in pixels.

    Returns:
        The page.
    """
    columns, height = min(columns, len(panels)), max(1, round(width * ratio))
    line = round(LINE * text_size)
    title_height = line * max(title.count("\n") + 1 for title, _ in panels)
    across, down = width + MARGIN, height + title_height + MARGIN
    rows = -(-len(panels) // columns)
    page = Image.new("RGB", (columns * across + MARGIN, rows * down + MARGIN), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=text_size)
    for index, (title, panel) in enumerate(panels):
        left, top = MARGIN + index % columns * across, MARGIN + index // columns * down
        for number, text in enumerate(title.split("\n")):
            pen.text((left, top + number * line), text, fill="black" if number == 0 else GRAY, font=font)
        method = Image.Resampling.NEAREST if panel.width < width else Image.Resampling.LANCZOS
        page.paste(panel.resize((width, height), method), (left, top + title_height))
    return page
