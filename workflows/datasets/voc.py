"""Detection data sets in Pascal VOC format."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

from featuretap.support.errors import DataError, ImageError
from featuretap.support.image_files import SUFFIXES
from featuretap.workflows.datasets.boxed_images import AnnotatedImage, Box, BoxCheck, detection_set
from featuretap.workflows.datasets.data_set import DataSet, raise_problems, upright_size
from featuretap.workflows.datasets.splits import part_folders, read_part_lists

LAYOUT = "xmin, ymin, xmax, ymax in pixels"
NO_BOX = "'bndbox' of four numbers"


def open_voc(folder: Path, val_fraction: float, seed: int) -> DataSet:
    """Open the folders of Pascal VOC, or a folder with an .xml file next to each image, with or without parts.

    Classes are sorted by name.

    Args:
        folder: the folder.
        val_fraction: fraction to hold out for validation, if there are neither parts nor lists.
        seed: seed of the split.

    Returns:
        The data set.

    Raises:
        DataError: files are missing or cannot be used; the message counts all problems and names the first ones.
    """
    places: list[tuple[Path, Path, tuple[str, ...] | None]]
    annotations = folder / "Annotations"
    if annotations.is_dir():
        images = folder / "JPEGImages"
        place = annotations, images if images.is_dir() else folder
        sets = folder / "ImageSets"
        lists = read_part_lists(sets / "Main", sets, sets / "Segmentation")
        places = [(*place, names) for names in lists] if lists else [(*place, None)]
    else:
        places = [(part, part, None) for part in part_folders(folder) or [folder]]
    problems: list[str] = []
    checks = [BoxCheck(annotations, LAYOUT) for annotations, *_ in places]
    parts = [_read_part(*place, check, problems) for place, check in zip(places, checks, strict=True)]
    raise_problems(problems, folder)
    for (annotations, *_), part, check in zip(places, parts, checks, strict=True):
        check.report()
        if not any(image.boxes for image in part):
            raise DataError(f"the annotations in {str(annotations)!r} contain no objects")
    classes = tuple(sorted({name for part in parts for image in part for name in image.names}))
    return detection_set(parts, classes, folder, val_fraction, seed)


def _read_part(
    annotation_folder: Path, image_folder: Path, listed: tuple[str, ...] | None, check: BoxCheck, problems: list[str]
) -> list[AnnotatedImage]:
    """Return the images of a part (all, or only the listed ones), and add problems to `problems`."""
    annotations, images = _files_by_stem(annotation_folder, [".xml"]), _files_by_stem(image_folder, SUFFIXES)
    found = []
    for name in listed or sorted({*annotations, *images}):
        for kind, files, where in (("annotations", annotations, annotation_folder), ("image", images, image_folder)):
            if name not in files:
                problems.append(f"{name!r} has no {kind} in {where.name!r}")
            elif len(files[name]) > 1:
                problems.append(f"{' and '.join(repr(path.name) for path in files[name])} have the same name")
        if name in annotations and name in images:
            found.append(_read_annotations(annotations[name][0], images[name][0], check, problems))
    return found


def _files_by_stem(folder: Path, suffixes: Iterable[str]) -> dict[str, list[Path]]:
    """Return the files in a folder with these suffixes, by name without suffix."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
            found.setdefault(path.stem, []).append(path)
    return found


class _TreeBuilder(ElementTree.TreeBuilder):
    """A tree builder that rejects files with a document type, whose entities can expand a small file without limit."""

    def doctype(self, name: str, public: str | None, system: str | None) -> NoReturn:
        raise DataError("it declares a document type, which annotations do not need")


def _read_annotations(path: Path, image: Path, check: BoxCheck, problems: list[str]) -> AnnotatedImage:
    """Return the valid objects of a file, and add problems to `problems`."""
    annotated = AnnotatedImage(str(image), (0, 0))
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_TreeBuilder()))
        annotated = AnnotatedImage(str(image), _image_size(root, image))
        for number, element in enumerate(root.iter("object"), 1):
            name = (element.findtext("name") or "").strip()
            box = _corners(element.find("bndbox"))
            label = f"object {number} of {path.name!r}"
            if not name or box is None:
                problems.append(f"{label} has no {NO_BOX if name else 'name'}")
                continue
            clipped, problem = check.clip(box, annotated.size, label)
            if clipped is None:
                problems += [f"{label} {problem}"] if problem else []
                continue
            annotated.boxes.append(clipped)
            annotated.names.append(name)
            annotated.ignored.append((element.findtext("difficult") or "").strip() == "1")
    except (ElementTree.ParseError, ValueError) as error:
        # DataError and ImageError are subclasses of ValueError.
        problems.append(str(error) if isinstance(error, ImageError) else f"{path.name!r} is not a VOC file: {error}")
    return annotated


def _image_size(root: ElementTree.Element, image: Path) -> tuple[int, int]:
    """Return the image size in the annotations. If it is missing or 0, return the size of the image file."""
    if root.tag != "annotation":
        raise DataError(f"its root element is {root.tag!r}, not 'annotation'")
    texts = root.findtext("size/width"), root.findtext("size/height")
    try:
        width, height = (int(float(text)) for text in texts if text is not None)
    except (ValueError, OverflowError):
        width = height = 0
    return (width, height) if min(width, height) > 0 else upright_size(str(image))


def _corners(element: ElementTree.Element | None) -> Box | None:
    """Convert VOC's corners, which count from 1 and are inclusive, to x1, y1, x2, y2 from 0."""
    if element is None:
        return None
    try:
        x1, y1, x2, y2 = (float(element.findtext(name) or "") for name in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        return None
    return (x1 - 1, y1 - 1, x2, y2) if all(map(math.isfinite, (x1, y1, x2, y2))) else None
