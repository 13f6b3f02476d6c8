"""Detection data sets in YOLO format: a text file of boxes or polygons per image, and "data.yaml"."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featuretap.support.errors import DataError, ImageError
from featuretap.support.extras import check_extra
from featuretap.support.image_files import images_below, is_image_file
from featuretap.workflows.datasets.boxed_images import AnnotatedImage, Box, BoxCheck, detection_set, polygon_run_lengths
from featuretap.workflows.datasets.data_set import DataSet, raise_problems, upright_size
from featuretap.workflows.datasets.image_paths import paths_inside, raise_outside
from featuretap.workflows.datasets.recognition import yolo_files
from featuretap.workflows.datasets.splits import part_folders

logger = logging.getLogger("featuretap")

IMAGES, LABELS = "images", "labels"
VALIDATION = ("val", "valid", "test")
"""Keys of "data.yaml" for the validation images, in order of preference."""

NAMES = ("classes.txt", "obj.names")
"""Files with one class per line, written by labeling tools and by Darknet."""

BOX, POLYGON = 4, 6
"""Number of values of a box, and minimum number of values of a polygon."""

MARGIN = 0.05
"""Maximum distance of a keypoint from its box, as a fraction of the image."""

POSES = 0.25
"""Fraction of objects that must look like poses for all objects to count as poses. At most 4 % of random polygons look
like poses, and at least 27 % of random poses of three points in boxes of up to 0.6 of the image."""

ROUNDING = 0.005
"""Rounding error of coordinates with few digits, as a fraction of the image."""

Row = tuple[int, list[float]]
"""The label of an object, and its box or polygon as fractions of the image's width and height."""


def open_yolo(source: Path, val_fraction: float, seed: int, masks: bool, images_root: Path | None = None) -> DataSet:
    """Open a folder in YOLO format, or its YAML file.

    The box of a polygon (which can be an oriented box with four corners) is its bounding box. Images without a label
    file are images without objects. Without a YAML file, the folders "train" and "val" are the parts, and
    "classes.txt" or "obj.names" contains the class names.

    Args:
        source: the folder or the YAML file.
        val_fraction: fraction to hold out for validation, if there are no parts.
        seed: seed of the split.
        masks: whether to read object masks.
        images_root: folder outside the data set that may contain images.

    Returns:
        The data set.

    Raises:
        DataError: files are missing or cannot be used; the message counts all problems and names the first ones.
    """
    if masks:
        check_extra("reading masks", "train", ["faster_coco_eval"])
    file = _yaml_file(source)
    folder = source if file is None else file.parent
    content = {} if file is None else _read_yaml(file)
    roots = [folder, *([images_root] if images_root else [])]
    parts = _folder_parts(folder) if file is None else _listed_parts(file, content, roots)
    # In pose data sets, keypoints follow the box; read the box only.
    length = BOX if "kpt_shape" in content else None
    problems: list[str] = []
    rows = [[_read_labels(_label_file(path), length, problems) for path in part] for part in parts]
    raise_problems(problems, folder)
    _check_poses([values for part in rows for objects in part for _, values in objects], folder)
    labels = {label for part in rows for objects in part for label, _ in objects}
    if not labels:
        raise DataError(f"the label files of {str(folder)!r} contain no objects; put label files into {LABELS!r}")
    names = _names(content["names"], file) if file else _names_beside(folder, max(labels))
    unknown = sorted(label for label in labels if label >= len(names))
    if unknown:
        counted = "only class 0 has a name" if len(names) == 1 else f"only classes 0 to {len(names) - 1} have names"
        raise DataError(
            f"the label files of {str(folder)!r} contain class {unknown[-1]}, but {counted}; add the missing names"
        )
    check = BoxCheck(folder, "fractions of the width and height")
    images = [
        [_annotate(path, objects, names, masks, problems, check) for path, objects in zip(part, found, strict=True)]
        for part, found in zip(parts, rows, strict=True)
    ]
    raise_problems(problems, folder)
    check.report()
    polygons = any(len(values) > BOX for part in rows for objects in part for _, values in objects)
    data = detection_set(images, names, folder, val_fraction, seed)
    return replace(data, targets="boxes and masks" if polygons else "boxes")


def _yaml_file(source: Path) -> Path | None:
    if source.is_file():
        return source
    files = yolo_files(source)
    if len(files) > 1:
        names = " and ".join(repr(path.name) for path in files)
        raise DataError(f"{str(source)!r} has {names}; choose one of these files instead of the folder")
    return files[0] if files else None


def _read_yaml(file: Path) -> Mapping[str, Any]:
    check_extra("reading YOLO's YAML files", "train", ["yaml"])
    import yaml

    try:
        content = yaml.safe_load(file.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{str(file)!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("names"), list | dict):
        raise DataError(f"{str(file)!r} has no list 'names'; add the names of all classes, in the order of their ids")
    if not content.get("train"):
        raise DataError(f"{str(file)!r} has no training images; set 'train' to a folder or a list of image files")
    return content


def _names(names: Any, file: Path) -> tuple[str, ...]:
    """Return the class names from a list, or from a table number → name."""
    if isinstance(names, dict):
        numbered = {str(number): name for number, name in names.items()}
        numbers = list(map(str, range(len(names))))
        if set(numbered) != set(numbers):
            raise DataError(f"{str(file)!r} must number its {len(names)} names from 0 to {len(names) - 1}")
        names = [numbered[number] for number in numbers]
    classes = tuple(str(name) for name in names)
    repeated = next((name for name in classes if classes.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{str(file)!r} has the class {repeated!r} twice; give each class a unique name")
    return classes


def _names_beside(folder: Path, largest: int) -> tuple[str, ...]:
    """Return the class names in the first existing file of `NAMES`, or else names such as "class 0"."""
    places = dict.fromkeys((folder, folder / LABELS, *part_folders(folder)))
    path = next((place / name for place in places for name in NAMES if (place / name).is_file()), None)
    if path is None:
        return tuple(f"class {number}" for number in range(largest + 1))
    return _names([line.strip() for line in _read_text(path).splitlines() if line.strip()], path)


def _folder_parts(folder: Path) -> list[list[Path]]:
    """Return the images of each part, from "images/train", "images", "train/images", "train", or the folder itself."""
    images = folder / IMAGES
    layouts = [
        part_folders(images) or [images] if images.is_dir() else [],
        [part / IMAGES if (part / IMAGES).is_dir() else part for part in part_folders(folder)],
    ]
    found = [[_images_in(place, folder, [folder]) for place in places] for places in layouts if places]
    # Without subfolders, which may belong to another format.
    found.append([[path for path in sorted(folder.iterdir()) if is_image_file(path)]])
    labeled = [parts for parts in found if any(_label_file(path).is_file() for part in parts for path in part)]
    if not labeled and len(found) == 1:
        raise DataError(
            f"{str(folder)!r} has neither folders {IMAGES!r} and {LABELS!r} nor a 'data.yaml'; add one of these"
        )
    return (labeled or found)[0]


def _listed_parts(file: Path, content: Mapping[str, Any], roots: Sequence[Path]) -> list[list[Path]]:
    """Return the images of the parts in a YAML file. A validation part equal to the training part is ignored."""
    key = next((key for key in VALIDATION if content.get(key)), None)
    train = _listed_images(file, content, "train", roots)
    if key is None:
        return [train]
    val = _listed_images(file, content, key, roots)
    if set(val) & set(train):
        if set(val) == set(train):
            logger.warning("%r validates on the training images; holding out some of them instead", str(file))
            return [train]
        both = min(set(val) & set(train))
        raise DataError(
            f"{str(file)!r} has the image {str(both)!r} in both 'train' and {key!r}; remove it from one of them"
        )
    if key == "test":
        logger.warning("%r has no 'val'; using 'test' as the validation set", str(file))
    return [train, val]


def _listed_images(file: Path, content: Mapping[str, Any], key: str, roots: Sequence[Path]) -> list[Path]:
    entries = content[key] if isinstance(content[key], list) else [content[key]]
    places = [_resolve(file, content.get("path"), str(entry), roots) for entry in entries]
    return [image for place in places for image in _images_in(place, file, roots)]


def _resolve(file: Path, root: Any, entry: str, allowed: Sequence[Path]) -> Path:
    """Return the path of a part, relative to `path` in the YAML file, or to the folder of the file."""
    roots = [file.parent, *([file.parent / Path(str(root)).expanduser()] if root else [])][::-1]
    # Roboflow writes "../train/images" for the folder "train" next to the file.
    names = [entry, *([entry.removeprefix("../")] if entry.startswith("../") else [])]
    paths = [place / name for name in names for place in roots]
    for path in paths_inside(paths, allowed):
        if path.exists():
            return path
    raise_outside([str(path) for path in paths if not paths_inside([path], allowed) and path.exists()], file)
    searched = " or ".join(repr(str(path)) for path in dict.fromkeys(paths))
    raise DataError(f"{str(file)!r} names {entry!r}, which does not exist (looked for {searched})")


def _images_in(place: Path, where: Path, roots: Sequence[Path]) -> list[Path]:
    """Return the images in a folder, or the images listed in a text file, relative to the file."""
    if place.suffix.lower() == ".txt" and place.is_file():
        lines = [line.strip() for line in _read_text(place).splitlines() if line.strip()]
        raise_outside([line for line in lines if not paths_inside([place.parent / line], roots)], place)
        images = paths_inside([place.parent / line for line in lines], roots)
        missing = [repr(str(path)) for path in images if not path.is_file()]
        raise_problems([f"the image {path} is missing" for path in missing], place)
    else:
        images = images_below(place) if place.is_dir() else []
    if not images:
        raise DataError(f"{str(place)!r} (named in {str(where)!r}) contains no images")
    return images


def _label_file(image: Path) -> Path:
    """Return the label file of an image: with the last folder "images" replaced by "labels", or next to the image."""
    beside = image.with_suffix(".txt")
    parts = list(beside.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == IMAGES]
    if places:
        parts[places[-1]] = LABELS
    path = Path(*parts)
    return path if path.is_file() else beside


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not UTF-8 text: {error}") from error


def _read_labels(path: Path, length: int | None, problems: list[str]) -> list[Row]:
    """Return the unique objects in a file, with up to `length` values each, and add problems to `problems`."""
    rows: list[Row] = []
    # Some labeling tools repeat lines, which would count objects twice.
    for number, line in enumerate(dict.fromkeys(_read_text(path).splitlines() if path.is_file() else ()), 1):
        if not line.strip():
            continue
        try:
            label, *values = map(float, line.split())
        except ValueError:
            label, values = math.nan, []
        values = values[:length]
        is_shape = len(values) == BOX or (len(values) >= POLYGON and len(values) % 2 == 0)
        if _is_pose(values):
            problems.append(
                f"line {number} of {str(path)!r} has keypoints after its box; if this is a pose data set, add "
                "'kpt_shape' to 'data.yaml'"
            )
        elif label.is_integer() and len(values) == BOX + 1:
            problems.append(
                f"line {number} of {str(path)!r} has five numbers after the class, like a prediction with a score; use "
                "ground truth labels"
            )
        elif not (label.is_integer() and label >= 0 and is_shape):
            problems.append(
                f"line {number} of {str(path)!r} is not a class and a box of four numbers, or a polygon: {line[:60]!r}"
            )
        elif not all(-1 <= value <= 2 for value in values):
            problems.append(
                f"line {number} of {str(path)!r} has the coordinate {max(values, key=abs):g}; coordinates are "
                "fractions of the image's width and height, from 0 to 1"
            )
        else:
            rows.append((int(label), values))
    return rows


def _is_pose(values: Sequence[float]) -> bool:
    """Return whether values are a box followed by points inside it, each with a visibility of 0, 1 or 2."""
    box, points = values[:BOX], values[BOX:]
    # Polygon corners at the borders of the image are also 0 or 1, so check positions as well.
    if len(points) % 3 or not any(points[2::3]) or not {0, 1, 2}.issuperset(points[2::3]):
        return False
    x, y, width, height = box
    return all(
        visible == 0 or (abs(px - x) <= width / 2 + MARGIN and abs(py - y) <= height / 2 + MARGIN)
        for px, py, visible in zip(points[::3], points[1::3], points[2::3], strict=True)
    )


def _check_poses(objects: Sequence[Sequence[float]], folder: Path) -> None:
    """Raise DataError for boxes followed by keypoints without visibility, which look like polygons."""
    lengths = set(map(len, objects))
    if len(lengths) == 1 and min(lengths) > POLYGON and sum(map(_is_flat_pose, objects)) > POSES * len(objects):
        raise DataError(
            f"the label files of {str(folder)!r} have {(min(lengths) - BOX) // 2} points after each box and inside it; "
            "if this is a pose data set, add 'kpt_shape' to 'data.yaml'"
        )


def _is_flat_pose(values: Sequence[float]) -> bool:
    """Return whether values look like a box with points inside. The size of a box is no plausible polygon corner."""
    (x, y, width, height), points = values[:BOX], list(zip(values[BOX::2], values[BOX + 1 :: 2], strict=True))
    # Unlabeled keypoints are 0, 0.
    seen = [point for point in points if any(point)]
    if not all(abs(px - x) <= width / 2 + MARGIN and abs(py - y) <= height / 2 + MARGIN for px, py in seen):
        return False
    for size, center, axis in ((width, x, 0), (height, y, 1)):
        others = [center, *(point[axis] for point in seen)]
        # A corner of a parallelogram is at most this far from the other corners, apart from rounding.
        extent = max(others) - min(others) + ROUNDING
        if not min(others) - extent <= size <= max(others) + extent:
            return True
    return False


def _annotate(
    path: Path, rows: Sequence[Row], names: Sequence[str], masks: bool, problems: list[str], check: BoxCheck
) -> AnnotatedImage:
    """Return an image with its objects, and add problems to `problems`."""
    try:
        size = upright_size(str(path))
    except ImageError as error:
        problems.append(error.problem)
        return AnnotatedImage(str(path), (0, 0))
    image = AnnotatedImage(str(path), size, [] if masks else None)
    for number, (label, values) in enumerate(rows, 1):
        what = f"object {number} of {path.name!r}"
        points = [value * side for value, side in zip(values, size * (len(values) // 2), strict=True)]
        box, problem = check.clip(_bounds(points), size, what)
        if box is None:
            problems += [f"{what} {problem}"] if problem else []
        elif image.outlines is not None and len(points) == BOX:
            problems.append(f"{what} is a box, but masks need polygons")
        else:
            if image.outlines is not None:
                try:
                    image.outlines.append(polygon_run_lengths([points], size))
                except ValueError as error:
                    problems.append(f"{what} {error}")
                    continue
            image.boxes.append(box)
            image.names.append(names[label])
            image.ignored.append(False)
    return image


def _bounds(points: Sequence[float]) -> Box:
    """Return x1, y1, x2, y2 of a box (center and size) or of the bounding box of a polygon."""
    if len(points) == BOX:
        x, y, width, height = points
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])
