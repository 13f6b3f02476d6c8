"""One file of annotations in COCO's format. No torch."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from featuretap.support.errors import DataError
from featuretap.support.text import first_few
from featuretap.workflows.datasets.boxed_images import AnnotatedImage, box_problem, clipped
from featuretap.workflows.datasets.problems import raise_problems

__all__ = ["CocoFile", "read_coco"]

logger = logging.getLogger("featuretap")

LARGEST = 1_000_000
"""Beyond any image, in pixels; NaN and infinity are beyond it too."""


class CocoFile(NamedTuple):
    """What a file says.

    Attributes:
        path: the file.
        classes: names of the categories, by ascending id.
        images: its images in the order of their ids, those without objects too.
    """

    path: Path
    classes: tuple[str, ...]
    images: list[AnnotatedImage]


def read_coco(path: Path, folders: Sequence[Path], masks: bool) -> CocoFile:
    """Read a file of annotations for detection, and find its images.

    Args:
        path: the JSON file.
        folders: where its images may be; the first that has one counts.
        masks: whether every object's outline is wanted too.

    Raises:
        DataError: it is no such file, or what it says cannot be. All problems are counted, and the first are named.
    """
    lists = _lists(path)
    problems: list[str] = []
    categories = _categories(lists["categories"], problems)
    images = _images(lists["images"], folders, masks, problems)
    raise_problems(problems, path)
    empty: list[str] = []
    for annotation in lists["annotations"]:
        problem = _take_in(annotation, categories, images, empty)
        if problem:
            problems.append(f"{_who(annotation, images)} {problem}")
    raise_problems(problems, path)
    if not any(image.boxes for image in images.values()):
        raise DataError(f"{str(path)!r} has no annotations, so that there is nothing to learn or to judge by")
    if empty:
        counted = "an object" if len(empty) == 1 else f"{len(empty)} objects"
        logger.warning("left out %s of no width or height in %r: %s", counted, str(path), first_few(empty, 5, "; "))
    classes = tuple(categories[number] for number in sorted(categories))
    return CocoFile(path, classes, [images[number] for number in sorted(images)])


def _lists(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is no JSON: {error}") from error
    lists = {
        key: content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations", "categories")
    }
    for key, found in lists.items():
        if not isinstance(found, list):
            raise DataError(f"{str(path)!r} is no COCO file for detection: it has no list of {key!r}")
        if not found:
            raise DataError(f"{str(path)!r} has no {key}")
    return {key: found for key, found in lists.items() if found}


def _categories(entries: Sequence[Any], problems: list[str]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for entry in entries:
        unnamed = _unnamed(entry, "name")
        if unnamed:
            problems.append(f"category {_shown(entry)} {unnamed}")
        elif entry["id"] in categories:
            problems.append(f"category {entry['id']} is there twice")
        else:
            categories[entry["id"]] = entry["name"]
    repeated = [name for name, count in Counter(categories.values()).items() if count > 1]
    problems += [f"several categories are called {name!r}" for name in repeated]
    return categories


def _images(
    entries: Sequence[Any], folders: Sequence[Path], masks: bool, problems: list[str]
) -> dict[int, AnnotatedImage]:
    images: dict[int, AnnotatedImage] = {}
    missing: list[str] = []
    for entry in entries:
        unnamed = _unnamed(entry, "file_name")
        if unnamed:
            problems.append(f"image {_shown(entry)} {unnamed}")
            continue
        number, name, width, height = entry["id"], entry["file_name"], entry.get("width"), entry.get("height")
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if number in images:
            problems.append(f"image {number} is there twice")
        elif not (_side(width) and _side(height)):
            problems.append(f"image {number}, {name!r}, has no width and height")
        elif path is None:
            missing.append(name)
        else:
            images[number] = AnnotatedImage(str(path), (width, height), [], [], [], [] if masks else None)
    if missing:
        looked = " or ".join(repr(str(folder)) for folder in folders)
        problems.append(f"the image {missing[0]!r} is missing (looked in {looked})")
        problems += [f"the image {name!r} is missing" for name in missing[1:]]
    repeated = [name for name, count in Counter(image.path for image in images.values()).items() if count > 1]
    problems += [f"several images are {name!r}" for name in repeated]
    return images


def _take_in(
    annotation: Any, categories: Mapping[int, str], images: Mapping[int, AnnotatedImage], empty: list[str]
) -> str:
    """Add an object to its image, or to the empty ones; return what is wrong with it, or ""."""
    if not isinstance(annotation, Mapping):
        return "is no object"
    number, category, found = annotation.get("image_id"), annotation.get("category_id"), annotation.get("bbox")
    for key, value in (("image", number), ("category", category)):
        if not _whole(value):
            return f"has {key}_id {_shown(value)}, which is no whole number"
        if value not in (images if key == "image" else categories):
            return f"is of {key} {value}, which is not there"
    if not (isinstance(found, list) and len(found) == 4 and all(map(_number, found))):
        return "has no 'bbox' of four numbers"
    image = images[number]  # type: ignore[index]
    x, y, width, height = map(float, found)
    if min(width, height) == 0:
        # COCO's own training set has two.
        empty.append(_who(annotation, images))
        return ""
    box = (x, y, x + width, y + height)
    problem = box_problem(box, image.size)
    if problem:
        return problem
    if image.outlines is not None:
        try:
            image.outlines.append(_run_lengths(annotation.get("segmentation"), image.size))
        except ValueError as error:
            return str(error)
    image.boxes.append(clipped(box, image.size))
    image.names.append(categories[category])  # type: ignore[index]
    image.ignored.append(annotation.get("iscrowd") in (1, True))
    return ""


def _who(annotation: Any, images: Mapping[int, AnnotatedImage]) -> str:
    if not isinstance(annotation, Mapping):
        return f"annotation {_shown(annotation)}"
    number = annotation.get("image_id")
    of = f" of {Path(images[number].path).name!r}" if _whole(number) and number in images else ""
    return f"annotation {_shown(annotation.get('id'))}{of}"


def _run_lengths(outline: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Return a mask as compressed run lengths, out of polygons or run lengths.

    Raises:
        ValueError: it is none.
    """
    from faster_coco_eval.core import mask

    width, height = size
    polygons = isinstance(outline, list) and outline and all(map(_is_polygon, outline))
    if not (polygons or (isinstance(outline, Mapping) and _are_counts(outline.get("counts")))):
        raise ValueError("has no 'segmentation' of polygons or run lengths, which masks need")
    if polygons:
        return dict(mask.merge(mask.frPyObjects(outline, height, width)))
    if outline.get("size") != [height, width]:
        said = _shown(outline.get("size"))
        raise ValueError(f"has a mask of size {said} (height, width) in an image of {width}×{height}")
    try:
        lengths = outline if isinstance(outline["counts"], str) else mask.frPyObjects(dict(outline), height, width)
        # The library looks at run lengths only where it has to decode them.
        mask.decode(lengths)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"has run lengths that make no mask: {error}") from error
    return dict(lengths)


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0 and all(map(_number, value))


def _are_counts(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(_whole(count) and 0 <= count <= LARGEST**2 for count in value)
    )


def _unnamed(entry: Any, name: str) -> str:
    """Return what an entry lacks of its id and its name, or ""."""
    if not isinstance(entry, Mapping):
        return "is no object"
    if not _whole(entry.get("id")):
        return f"has the id {_shown(entry.get('id'))}, which is no whole number"
    return "" if isinstance(entry.get(name), str) else f"has no text as {name}"


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _side(value: Any) -> TypeGuard[int]:
    return _whole(value) and 0 < value <= LARGEST


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
