"""scikit-learn's handwritten digits, which need no download, as a data set of torchvision's kind. No torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from featuretap.support.extras import check_extra

__all__ = ["Digits"]


class Digits:
    """1,797 grey images of 8×8 pixels.

    Args:
        root: not used, since the images come with scikit-learn.
        download: not used either.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """

    def __init__(self, root: Path, download: bool = False) -> None:
        check_extra("the data set 'digits'", "train", ["sklearn"])
        from sklearn.datasets import load_digits

        loaded = load_digits()
        # Values are from 0 to 16.
        self.pixels = np.round(loaded.images / 16 * 255).astype(np.uint8)
        self.targets: list[int] = loaded.target.tolist()

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]), self.targets[index]
