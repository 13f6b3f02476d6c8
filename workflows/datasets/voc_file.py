"""One file of annotations in Pascal VOC's format. No torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

from featuretap.support.errors import DataError, ImageError
from featuretap.workflows.datasets.boxed_images import AnnotatedImage, box_problem, clipped
from featuretap.workflows.datasets.image_checks import upright_size

__all__ = ["read_voc"]


class _Elements(ElementTree.TreeBuilder):
    """Builds a tree of a file that declares nothing: declared entities can make a small file fill the memory."""

    def doctype(self, name: str, public: str | None, system: str | None) -> NoReturn:
        raise DataError("it declares a document type, which annotations never need")


def read_voc(path: Path, image: Path, problems: list[str]) -> AnnotatedImage:
    """Read what a file says of an image, without what is wrong, which is added to `problems`."""
    boxes, names, ignored = [], [], []
    size = (0, 0)
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_Elements()))
        size = _size(root, image)
        for number, element in enumerate(root.iter("object"), 1):
            who = f"object {number} of {path.name!r}"
            name = (element.findtext("name") or "").strip()
            box = _box(element.find("bndbox"))
            problem = "has no name" if not name else "has no 'bndbox' of four numbers" if box is None else ""
            problem = problem or (box_problem(box, size) if box else "")
            if problem or box is None:
                problems.append(f"{who} {problem}")
                continue
            boxes.append(clipped(box, size))
            names.append(name)
            ignored.append((element.findtext("difficult") or "").strip() == "1")
    except (ElementTree.ParseError, ValueError) as error:
        # DataError and ImageError are ValueErrors too.
        problems.append(str(error) if isinstance(error, ImageError) else f"{path.name!r} is no VOC file: {error}")
    return AnnotatedImage(str(image), size, boxes, names, ignored)


def _size(root: ElementTree.Element, image: Path) -> tuple[int, int]:
    """Return the size that is written, or that of the image where the tool left it out or wrote 0."""
    if root.tag != "annotation":
        raise DataError(f"it begins with {root.tag!r} in place of 'annotation'")
    texts = root.findtext("size/width"), root.findtext("size/height")
    try:
        width, height = (int(text) for text in texts if text is not None)
    except ValueError:
        width = height = 0
    return (width, height) if min(width, height) > 0 else upright_size(str(image))


def _box(element: ElementTree.Element | None) -> tuple[float, float, float, float] | None:
    """Return corners that count from 1 and are both inside the box as x1, y1, x2, y2 that count from 0."""
    if element is None:
        return None
    try:
        x1, y1, x2, y2 = (float(element.findtext(name) or "") for name in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        return None
    return (x1 - 1, y1 - 1, x2, y2) if all(map(math.isfinite, (x1, y1, x2, y2))) else None
