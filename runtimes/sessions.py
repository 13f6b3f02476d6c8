"""`registry.session`: models that a runtime runs without PyTorch, for NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featuretap.runtimes import preparing
from featuretap.runtimes.signature import Signature
from featuretap.specs import Tap
from featuretap.specs.class_names import class_names
from featuretap.specs.description import Description
from featuretap.support.errors import OptionError

if TYPE_CHECKING:
    from PIL import Image


Array = NDArray[Any]


@dataclass(frozen=True)
class Opened:
    """A model that a runtime has opened: its metadata, and images (N, C, H, W) → outputs in order."""

    metadata: Mapping[str, str]
    run: Callable[[Array], Sequence[Array]]


class Session:
    """A model that a runtime runs without PyTorch: images (N, C, H, W) → outputs by name.

    Attributes:
        description: of the model, preprocessing included.
        runtime: name of the runtime.
        outputs: names of the outputs, in order.
        taps: output → channels and stride, of a backbone or a pyramid; empty for other models.
        classes: name of every class of the model, as far as they are known.

    Example:
        >>> from featuretap import registry
        >>> session = registry.session("model.safetensors")
        >>> outputs = session(session.prepare("photo.jpg"))
    """

    def __init__(
        self, run: Callable[[Array], Sequence[Array]], signature: Signature, description: Description, runtime: str
    ) -> None:
        self._run = run
        self._signature = signature
        self.description = description
        self.runtime = runtime
        self.outputs = signature.outputs
        self.taps: dict[str, Tap] = dict(signature.taps)
        self.classes = class_names(description)

    def __call__(self, images: Array) -> dict[str, Array]:
        """Return the outputs for images (N, C, H, W) of float32, as `prepare` returns them.

        Raises:
            OptionError: images of another shape or type.
        """
        if not isinstance(images, np.ndarray) or images.dtype != np.float32:
            found = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
            raise OptionError(f"a session takes images (N, C, H, W) as an array of float32, got {found}")
        if expected := self._signature.mismatch(images.shape):
            raise OptionError(f"this session is for images {expected}, got {images.shape}")
        return dict(zip(self.outputs, self._run(images), strict=True))

    def prepare(self, image: Image.Image | str | os.PathLike[str]) -> NDArray[np.float32]:
        """Return an image as the model wants it, as a batch of one (1, C, H, W), as `registry.transforms` prepares it.

        Args:
            image: an image of Pillow's, of any mode, or the path of a file.

        Raises:
            ImageError: the file is no image.
            OptionError: the model's images have neither one nor three channels.
        """
        return preparing.prepare(_open_image(image), self.description.preprocessing)

    def normalise(self, image: Image.Image | str | os.PathLike[str]) -> NDArray[np.float32]:
        """Return an image at its own size as a batch of one (1, C, H, W); arguments and errors as for `prepare`."""
        return preparing.normalise(_open_image(image), self.description.preprocessing)

    def __repr__(self) -> str:
        return f"Session({self.description.name!r}, runtime={self.runtime!r}, outputs={self.outputs})"


def default_threads() -> int:
    """Return the number of threads for a runtime: OMP_NUM_THREADS, or the processors that this process may use."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    if stated.isdecimal() and int(stated):
        return int(stated)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open_image(image: Any) -> Any:
    from featuretap.support.images import read_image

    return read_image(Path(image)) if isinstance(image, str | os.PathLike) else image
