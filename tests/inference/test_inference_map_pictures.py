"""Images of feature maps: the interior of a map determines its colors, and all panels have the same size."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from featuretap.workflows.inference.feature_maps import draw_panels, reduce_to_colors

Maps = NDArray[np.float32]


def feature(height: int, width: int, channels: int = 8) -> Maps:
    return np.random.default_rng(0).normal(size=(channels, height, width)).astype(np.float32)


def with_border(inside: Maps, value: float) -> Maps:
    """Return a map with a much larger value along the border, as padding produces."""
    bordered = inside.copy()
    bordered[:, [0, -1], :] = bordered[:, :, [0, -1]] = value
    return bordered


@pytest.mark.parametrize(("height", "width"), [(7, 7), (14, 21), (56, 84)])
@pytest.mark.parametrize("value", [-1000.0, 1000.0])
def test_a_bright_border_keeps_the_contrast_of_the_interior(height: int, width: int, value: float) -> None:
    plain = feature(height, width)
    inside, bordered = (
        np.asarray(reduce_to_colors(each))[1:-1, 1:-1].astype(int) for each in (plain, with_border(plain, value))
    )
    assert inside.std() > 30
    assert bordered.std() > 0.9 * inside.std()
    if height == 7:
        # Both maps have the same interior, which determines the colors.
        assert np.abs(bordered - inside).max() <= 1


def test_a_value_far_from_the_others_does_not_darken_them() -> None:
    outlier = feature(56, 56)
    outlier[:, 30, 30] *= 100
    assert np.asarray(reduce_to_colors(outlier)).std() > 30


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (4, 4), (5, 5), (3, 40)])
@pytest.mark.parametrize("channels", [1, 2, 40])
def test_maps_of_any_size_have_colors(size: tuple[int, int], channels: int) -> None:
    picture = reduce_to_colors(feature(*size, channels=channels))
    assert picture.size == size[::-1]
    assert picture.mode == "RGB"


def test_one_channel_is_gray_and_brighter_where_it_is_larger() -> None:
    ramp = np.linspace(0, 1, 100, dtype=np.float32).reshape(1, 1, 100) ** 2
    seen = np.asarray(reduce_to_colors(ramp))[0].astype(int)
    assert np.ptp(seen, axis=-1).max() <= 1
    assert (np.diff(seen[:, 0]) >= 0).all()
    assert seen[-1, 0] - seen[0, 0] > 150


def test_the_lines_of_a_title_are_above_its_panel() -> None:
    red = Image.new("RGB", (10, 5), "red")
    page = np.asarray(draw_panels([("one\ntwo", red)] * 3, 0.5, columns=2, width=100, text_size=20))
    below = 62 + 50 + 16
    assert page.shape == (2 * below + 16, 2 * 116 + 16, 3)
    panels = (page == (255, 0, 0)).all(-1)
    for left, top in ((16, 16), (132, 16), (16, 16 + below)):
        assert panels[top + 62 : top + 112, left : left + 100].all()
        assert all((page[line : line + 31, left : left + 100] < 128).any() for line in (top, top + 31))
    assert panels.sum() == 3 * 50 * 100
