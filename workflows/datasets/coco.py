"""Detection data sets in COCO format."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from featuretap.support.errors import DataError
from featuretap.support.extras import check_extra
from featuretap.support.image_files import folders_in
from featuretap.support.images import pixel_limit
from featuretap.support.text import first_few
from featuretap.workflows.datasets.boxed_images import AnnotatedImage, BoxCheck, detection_set, polygon_run_lengths
from featuretap.workflows.datasets.data_set import DataSet, FileIds, raise_problems, utf8
from featuretap.workflows.datasets.image_paths import paths_inside, raise_outside
from featuretap.workflows.datasets.splits import check_classes, part_folders

logger = logging.getLogger("featuretap")

IN_PART = "_annotations.coco.json"
"""Name of the annotation file in the folder of a part, as Roboflow exports it."""

LARGEST = 1_000_000
"""Maximum coordinate in pixels, larger than any image. The comparison also rejects NaN and infinity."""


def open_coco(folder: Path, val_fraction: float, seed: int, masks: bool, images_root: Path | None = None) -> DataSet:
    """Open a folder with an annotation file per part, or with a single file, whose images are split.

    Classes are in the order of the category ids, which need not be consecutive. Images without objects are kept.

    Args:
        folder: the folder.
        val_fraction: fraction to hold out for validation, with a single annotation file.
        seed: seed of the split.
        masks: whether to read object masks.
        images_root: another folder that may contain the images.

    Returns:
        The data set.
    """
    if masks:
        check_extra("reading masks", "train", ["faster_coco_eval"])
    files = _annotation_files(folder)
    roots = [folder, *([images_root] if images_root else [])]
    contents = [
        _read_annotations(file, [*_image_folders(folder, file, part), *roots[1:]], roots, masks)
        for file, part in zip(files, ("train", "val"), strict=False)
    ]
    names = [tuple(dict.fromkeys(categories.values())) for categories, _ in contents]
    check_classes(names[-1], names[0], files[-1], files[0], "categories")
    data = detection_set([list(images.values()) for _, images in contents], names[0], folder, val_fraction, seed)
    ids: dict[str, FileIds] = {}
    for categories, images in contents:
        # Merged categories get the id of the first one.
        numbers = {utf8(name): number for number, name in reversed(categories.items())}
        ids |= {image.path: FileIds(number, numbers) for number, image in images.items()}
    return replace(data, ids=ids)


def _annotation_files(folder: Path) -> list[Path]:
    """Return the annotation file of the training images and, if there is one, of the validation images."""
    parts = part_folders(folder) if any((part / IN_PART).is_file() for part in folders_in(folder)) else []
    if parts:
        return [part / IN_PART for part in parts]
    train, val = _file_of_part(folder, "train"), _file_of_part(folder, "val")
    if train and not val:
        val = _file_of_part(folder, "test")
        if val:
            logger.warning("%r has no annotations for 'val'; using %r as the validation set", str(folder), val.name)
    if train:
        return [train, val] if val else [train]
    if val:
        raise DataError(
            f"{str(folder)!r} has {val.name!r} but no annotations of training images; add 'instances_train.json'"
        )
    found = [*_json_files(folder), *_json_files(folder / "annotations")]
    if len(found) != 1:
        problem = f"has the JSON files {', '.join(repr(path.name) for path in found)}" if found else "has no JSON file"
        raise DataError(
            f"{str(folder)!r} {problem}; detection needs one annotation file in COCO format, or "
            "'annotations/instances_train.json' and 'annotations/instances_val.json', or Pascal VOC folders"
        )
    return found


def _file_of_part(folder: Path, part: str) -> Path | None:
    """Return the annotation file of a part: "instances_train2017.json", as in COCO, or else "train.json"."""
    files = [*_json_files(folder / "annotations"), *_json_files(folder)]
    for beginning in (f"instances_{part}", part):
        found = [path for path in files if path.name.lower().startswith(beginning)]
        if len(found) > 1:
            names = " and ".join(repr(path.name) for path in found)
            raise DataError(f"{str(folder)!r} has {names}; keep only the file for {part!r}")
        if found:
            return found[0]
    return None


def _json_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.suffix.lower() == ".json" and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file())


def _image_folders(folder: Path, file: Path, part: str) -> Sequence[Path]:
    """Return the folders in which to look for the images of an annotation file, in order."""
    if file.name == IN_PART:
        return [file.parent]
    names = dict.fromkeys([file.stem.removeprefix("instances_"), part, *(["valid"] if part == "val" else [])])
    return [*(root / name for root in (folder, folder / "images") for name in names), folder / "images", folder]


def _read_annotations(
    path: Path, folders: Sequence[Path], roots: Sequence[Path], masks: bool
) -> tuple[dict[int, str], dict[int, AnnotatedImage]]:
    """Return the categories and the images of a file by id, in ascending order."""
    lists = _read_lists(path)
    problems: list[str] = []
    categories = _categories(lists, path, problems)
    outside: list[str] = []
    images = _images(lists["images"], folders, roots, masks, problems, outside)
    raise_outside(outside, path)
    raise_problems(problems, path)
    check = BoxCheck(path, "x, y, width, height in pixels")
    for annotation in lists["annotations"]:
        problem = _add_object(annotation, categories, images, check)
        if problem:
            problems.append(f"{_label(annotation, images)} {problem}")
    raise_problems(problems, path)
    check.report()
    if not any(image.boxes for image in images.values()):
        raise DataError(f"{str(path)!r} has no annotations of objects; training and evaluation need at least one")
    return {int(key): categories[key] for key in sorted(categories)}, {int(key): images[key] for key in sorted(images)}


def _read_lists(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is not JSON: {error}") from error
    lists: dict[str, list[Any]] = {}
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{str(path)!r} is not a COCO detection file: it has no list {key!r}")
        if not entries:
            raise DataError(f"{str(path)!r} has an empty list {key!r}")
        lists[key] = entries
    return lists


def _categories(lists: Mapping[str, list[Any]], path: Path, problems: list[str]) -> dict[int, str]:
    """Return id → name, and add problems to `problems`.

    Roboflow exports an unused root category, the supercategory of the others. It is skipped.
    """
    entries = list(_valid_entries(lists["categories"], "category", "name", problems))
    annotated = [entry.get("category_id") for entry in lists["annotations"] if isinstance(entry, Mapping)]
    used = {number for number in annotated if _is_integer(number)}
    parents = {
        (entry.get("supercategory"), number)
        for number, _, entry in entries
        if isinstance(entry.get("supercategory"), str)
    }
    roots = {
        number
        for number, name, _ in entries
        if number not in used and any(parent == name and child != number for parent, child in parents)
    }
    categories = {number: name for number, name, _ in entries if number not in roots}
    if roots:
        skipped = first_few([repr(name) for number, name, _ in entries if number in roots], 5)
        logger.warning("skipped the supercategory %s of %r, which has no objects", skipped, str(path))
    for name, count in Counter(categories.values()).items():
        if count > 1:
            logger.warning("merged %d categories named %r in %r", count, name, str(path))
    return categories


def _valid_entries(
    entries: Sequence[Any], kind: str, name: str, problems: list[str]
) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Yield id, name and entry of each valid entry with a unique id, and add problems to `problems`."""
    known: set[int] = set()
    for entry in entries:
        if not isinstance(entry, Mapping):
            problems.append(f"{kind} {_format_value(entry)} is not a JSON object")
        elif not _is_integer(entry.get("id")):
            id_text = _format_value(entry.get("id"))
            problems.append(f"{kind} {_format_value(entry)} has id {id_text}, which is not an integer")
        elif not isinstance(entry.get(name), str):
            problems.append(f"{kind} {_format_value(entry)} has no string {name!r}")
        elif entry["id"] in known:
            problems.append(f"{kind} {entry['id']} occurs twice")
        else:
            known.add(entry["id"])
            yield entry["id"], entry[name], entry


def _images(
    entries: Sequence[Any],
    folders: Sequence[Path],
    roots: Sequence[Path],
    masks: bool,
    problems: list[str],
    outside: list[str],
) -> dict[int, AnnotatedImage]:
    """Return id → image without objects. Add problems to `problems`, and names outside the roots to `outside`."""
    limit = pixel_limit()
    images: dict[int, AnnotatedImage] = {}
    missing: list[str] = []
    for number, name, entry in _valid_entries(entries, "image", "file_name", problems):
        sides: Any = (entry.get("width"), entry.get("height"))
        # Try backslashes as the separators of Windows, after a file whose name contains them.
        names = dict.fromkeys((name, name.replace("\\", "/")))
        candidates = [folder / each for each in names for folder in folders]
        inside = paths_inside(candidates, roots)
        path = next((path for path in inside if path.is_file()), None)
        if not all(_is_integer(side) and 0 < side <= LARGEST for side in sides):
            problems.append(f"image {number}, {name!r}, has no valid width and height")
        elif sides[0] * sides[1] > limit:
            size = "{}×{}".format(*map(int, sides))
            problems.append(f"image {number}, {name!r}, has {size} pixels, more than FEATURETAP_MAX_PIXELS={limit}")
        elif path is None and len(inside) < len(candidates):
            outside.append(name)
        elif path is None:
            missing.append(name)
        else:
            width, height = map(int, sides)
            images[number] = AnnotatedImage(str(path), (width, height), [] if masks else None)
    if missing:
        searched = " or ".join(repr(str(folder)) for folder in folders)
        problems.append(f"the image {missing[0]!r} is missing (looked in {searched})")
        problems += [f"the image {name!r} is missing" for name in missing[1:]]
    repeated = [name for name, count in Counter(image.path for image in images.values()).items() if count > 1]
    problems += [f"several images have the file {name!r}" for name in repeated]
    return images


def _add_object(
    annotation: Any, categories: Mapping[int, str], images: Mapping[int, AnnotatedImage], check: BoxCheck
) -> str:
    """Add an object with an area to its image, and return the problem with it, or ""."""
    if not isinstance(annotation, Mapping):
        return "is not a JSON object"
    for key, known in (("image", images), ("category", categories)):
        value = annotation.get(f"{key}_id")
        if not _is_integer(value):
            return f"has {key}_id {_format_value(value)}, which is not an integer"
        if value not in known:
            return f"has {key}_id {value}, which does not exist"
    image, corners = images[annotation["image_id"]], annotation.get("bbox")
    if not (isinstance(corners, list) and len(corners) == 4 and all(map(_is_number, corners))):
        return "has no 'bbox' of four numbers"
    x, y, width, height = map(float, corners)
    # Boxes without area are allowed: COCO's training set has two of them.
    box, problem = check.clip((x, y, x + width, y + height), image.size, _label(annotation, images))
    if box is None:
        return problem
    if image.outlines is not None:
        try:
            image.outlines.append(_run_lengths(annotation.get("segmentation"), image.size))
        except ValueError as error:
            return str(error)
    image.boxes.append(box)
    image.names.append(categories[annotation["category_id"]])
    image.ignored.append(annotation.get("iscrowd") in (1, True))
    return ""


def _label(annotation: Any, images: Mapping[int, AnnotatedImage]) -> str:
    """Return the name of an annotation in messages."""
    if not isinstance(annotation, Mapping):
        return f"annotation {_format_value(annotation)}"
    number = annotation.get("image_id")
    of = f" of {Path(images[number].path).name!r}" if _is_integer(number) and number in images else ""
    return f"annotation {_format_value(annotation.get('id'))}{of}"


def _run_lengths(outline: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Return the compressed run-length encoding of polygons or run lengths. Raise ValueError for anything else."""
    width, height = size
    if isinstance(outline, list) and outline and all(map(_is_polygon, outline)):
        return polygon_run_lengths(outline, size)
    if not (isinstance(outline, Mapping) and _are_counts(outline.get("counts"))):
        raise ValueError("has no 'segmentation' with polygons or run lengths, which masks need")
    if outline.get("size") != [height, width]:
        stated = _format_value(outline.get("size"))
        raise ValueError(f"has a mask of size {stated} (height, width) in an image of {width}×{height}")
    from faster_coco_eval import mask_api_new_cpp
    from faster_coco_eval.core import mask

    lengths = {"size": [height, width], "counts": outline["counts"]}
    try:
        if isinstance(outline["counts"], list):
            lengths = dict(mask.frPyObjects(lengths, height, width))
        # Decoding would validate run lengths, too, but is slow for many objects of a large image.
        covered = sum(mask_api_new_cpp.toUncompressedRLE([lengths])[0]["counts"])
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"has invalid run lengths: {error}") from error
    if covered != width * height:
        raise ValueError(f"has run lengths of {covered} pixels in an image of {width}×{height}")
    return lengths


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0 and all(map(_is_number, value))


def _are_counts(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(type(count) is int and 0 <= count <= LARGEST**2 for count in value)
    )


def _is_integer(value: Any) -> TypeGuard[int]:
    # pandas writes integers as floats.
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _format_value(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
