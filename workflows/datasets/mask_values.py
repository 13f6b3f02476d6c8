"""Reading of segmentation masks, and the meaning of their values or colors."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featuretap.support.errors import DataError, ImageError
from featuretap.support.images import apply_orientation, open_image
from featuretap.support.text import first_few
from featuretap.workflows.datasets.data_set import IGNORED, raise_problems

logger = logging.getLogger("featuretap")

Kind = Literal["value", "color"]

NAMES = "classes.txt"
COLUMNS = ("red", "green", "blue")
TABLES = (NAMES, "labelmap.txt", "label_colors.txt", "class_dict.csv", "_classes.csv")
"""Files with class names, in order of preference: featuretap's own, and those of CVAT, CamVid and Roboflow."""

ROWS: Sequence[re.Pattern[str]] = (
    re.compile(r"(?P<red>\d+)[\s,]+(?P<green>\d+)[\s,]+(?P<blue>\d+)[\s,:]+(?P<name>.+)"),
    re.compile(r"(?P<name>.+?)\s*[,:]\s*(?P<red>\d+)\s*,\s*(?P<green>\d+)\s*,\s*(?P<blue>\d+)\s*(:.*)?"),
    re.compile(r"(?P<value>\d+)[\s,:]+(?P<name>.+)"),
)

IGNORED_VALUES = frozenset({IGNORED, 65535})
"""Values of ignored pixels: the largest values of 8 and 16 bits."""

CODE_NAME = re.compile(r"class \d+|#[0-9a-f]{6}")
"""Class names that are derived from values or colors, for masks without a table."""

TWO_CLASSES = ("class 0", "class 1")
"""Class names of black-and-white masks."""

VOID = 0xE0E0C0
"""Color of the object outlines in Pascal VOC, which have no class."""

GRAY = 0x010101
LOSSY = ("JPEG", "MPO", "WEBP")
SPARSE, NEAR_WHITE = 64, 230
"""Thresholds above which values with large gaps (SPARSE), or any values (NEAR_WHITE), may be gray levels, so 255 may be
a class."""

ADVICE = (
    "list the classes in 'classes.txt', one per line, each with its value or color first: '0 background', '255 road', "
    "or '128 64 128 road'"
)


@dataclass(frozen=True)
class Coding:
    """The class of each value or color in the masks of a data set.

    Args:
        classes: names of the classes.
        kind: whether masks contain values or colors (0xRRGGBB).
        labels: value or color → label, or `IGNORED`.
    """

    classes: tuple[str, ...]
    kind: Kind
    labels: Mapping[int, int]

    def read(self, path: str) -> NDArray[np.uint8]:
        """Read the label of each pixel of a mask.

        Args:
            path: the mask file.

        Returns:
            Labels (H, W).

        Raises:
            DataError: the mask cannot be read, or has a value or color without a class.
        """
        codes = _read_raw(path).codes_of(self.kind, path)
        known = np.array(sorted(self.labels), np.int32)
        indices = np.searchsorted(known, codes).clip(max=len(known) - 1)
        unknown = known[indices] != codes
        if unknown.any():
            raise DataError(f"the mask {path!r} {self._explain(int(codes[unknown].max()))}")
        return np.array([self.labels[code] for code in known.tolist()], np.uint8)[indices]

    def _explain(self, code: int) -> str:
        count = len(self.classes)
        if self.kind == "value" and self.labels == _in_order(range(count)):
            return (
                f"has the value {code}, but the {count} classes have the values 0 to {count - 1}, and ignored pixels "
                f"the value {IGNORED}"
            )
        return f"has the {self.kind} {_format_code(code, self.kind)}, which has no class"


class _Raw(NamedTuple):
    """The raw content of a mask file: values, palette indices with the palette, or colors."""

    pixels: NDArray[np.int32]
    kind: Kind
    palette: NDArray[np.int32] | None = None

    def codes_of(self, kind: Kind, path: str) -> NDArray[np.int32]:
        if kind == self.kind:
            return self.pixels
        if kind == "value":
            raise DataError(f"the mask {path!r} has colors, but other masks have values")
        return self.pixels * GRAY if self.palette is None else self.palette[self.pixels]


class _Found(NamedTuple):
    """The values that occur in masks; colors, if a mask has colors or the palettes differ."""

    kind: Kind
    codes: frozenset[int]


def find_coding(folder: Path, masks: Sequence[str], sampled: int, known: tuple[str, ...] | None = None) -> Coding:
    """Return the meaning of the values in the masks of a folder.

    All masks are read, unless "classes.txt" contains names only and the first masks have values of these classes.

    Args:
        folder: folder of the data set, with a table of the classes or without.
        masks: paths of the masks.
        sampled: number of masks to read first.
        known: classes of the model to evaluate, for masks without a table; None for training.

    Returns:
        The coding.

    Raises:
        DataError: masks cannot be read, or the meaning of their values is ambiguous.
    """
    names, kind, table = _read_table(folder)
    if names and not table and masks:
        found = _find_codes(folder, masks[:sampled])
        values = found.codes - IGNORED_VALUES
        if found.kind == "value" and any(values) and max(values) < len(names):
            return Coding(names, "value", _in_order(range(len(names))))
    if table:
        return Coding(names, kind, {**_ignored(kind), **table})
    found = _find_codes(folder, masks)
    if names:
        return _named(folder, names, found)
    return _unnamed(folder, found) if known is None else _known(folder, known, found)


def _named(folder: Path, names: tuple[str, ...], found: _Found) -> Coding:
    """Return the coding for class names without values."""
    if found.kind == "color":
        raise DataError(f"the masks in {str(folder)!r} have the colors {_list_codes(found)}; {ADVICE}")
    positive = found.codes - {0}
    if positive & set(range(len(names))):
        return Coding(names, "value", _in_order(range(len(names))))
    if len(found.codes) == len(names):
        listed = ", ".join(map(repr, names))
        logger.warning("%r: reading the mask values %s as %s", str(folder), _list_codes(found), listed)
        return Coding(names, "value", _in_order(sorted(found.codes)))
    raise DataError(
        f"the masks in {str(folder)!r} have the values {_list_codes(found)}, but there are {len(names)} classes; "
        f"{ADVICE}"
    )


def _known(folder: Path, classes: tuple[str, ...], found: _Found) -> Coding:
    """Return the coding of masks on which a model with `classes` is evaluated. The masks may lack some classes."""
    white = found.codes & IGNORED_VALUES
    is_coded = all(map(CODE_NAME.fullmatch, classes))
    is_binary = len(classes) == 2 and (not is_coded or classes == TWO_CLASSES)
    if found.kind == "value" and is_binary and white and found.codes <= white | {0}:
        logger.warning("%r: reading masks with the values %s as two classes", str(folder), _list_codes(found))
        return Coding(classes, "value", _in_order([0, max(white)]))
    if found.codes <= _ignored(found.kind).keys():
        raise DataError(
            f"the masks in {str(folder)!r} contain only the {found.kind} {_list_codes(found)}, which is ignored; "
            f"{ADVICE}"
        )
    if not is_coded:
        if found.kind == "value" and max(found.codes - IGNORED_VALUES, default=0) < len(classes):
            return Coding(classes, "value", _in_order(range(len(classes))))
        return _named(folder, classes, found)
    names = {code: _code_name(code, found.kind) for code in found.codes}
    labels = {code: classes.index(name) for code, name in names.items() if name in classes}
    labels = {**_ignored(found.kind), **labels}
    if found.codes - labels.keys():
        raise DataError(
            f"the masks in {str(folder)!r} have the {found.kind}s {_list_codes(found)}, but the model has the classes "
            f"{first_few([*map(repr, classes)], 5)}; {ADVICE}"
        )
    return Coding(classes, found.kind, labels)


def _unnamed(folder: Path, found: _Found) -> Coding:
    """Return the coding with a class per value or color, named after it."""
    codes = sorted(found.codes - _ignored(found.kind).keys())
    if found.kind == "value" and codes == [0] and len(found.codes) == 2:
        # Black and white, the most common kind of mask.
        logger.warning("%r: reading masks with the values %s as two classes", str(folder), _list_codes(found))
        return Coding(TWO_CLASSES, "value", _in_order(sorted(found.codes)))
    if len(codes) < 2:
        raise DataError(
            f"the masks in {str(folder)!r} contain only the {found.kind} {_list_codes(found)}; segmentation needs at "
            "least two classes, including the background"
        )
    if len(codes) > IGNORED:
        raise DataError(
            f"the masks in {str(folder)!r} have {len(codes)} {found.kind}s, but at most {IGNORED} classes are possible "
            f"(masks with antialiased edges or numbered objects have too many {found.kind}s); {ADVICE}"
        )
    if found.kind == "color":
        logger.warning("%r: reading the colors %s as %d classes", str(folder), _list_codes(found), len(codes))
        return Coding(tuple(_code_name(code, "color") for code in codes), "color", _in_order(codes, "color"))
    levels = codes[-1] >= NEAR_WHITE or codes[-1] >= max(SPARSE, 4 * len(codes))
    if IGNORED in found.codes and levels:
        raise DataError(
            f"the masks in {str(folder)!r} have the values {_list_codes(found)}, of which {IGNORED} may be a class or "
            f"mean ignored; {ADVICE}"
        )
    if codes[-1] >= len(codes):
        listed = first_few([*map(str, codes)], 20)
        logger.warning("%r: reading %d values as classes: %s", str(folder), len(codes), listed)
    return Coding(tuple(_code_name(code, "value") for code in codes), "value", _in_order(codes))


def _ignored(kind: Kind) -> dict[int, int]:
    return dict.fromkeys(IGNORED_VALUES if kind == "value" else (VOID,), IGNORED)


def _in_order(codes: Iterable[int], kind: Kind = "value") -> dict[int, int]:
    """Return code → label, with labels in the order of the codes."""
    return {**_ignored(kind), **{code: label for label, code in enumerate(codes)}}


def _code_name(code: int, kind: Kind) -> str:
    """Return the class name for a value or color. `CODE_NAME` matches it."""
    return f"class {code}" if kind == "value" else _format_code(code, kind)


def _format_code(code: int, kind: Kind) -> str:
    return str(code) if kind == "value" else f"#{code:06x}"


def _list_codes(found: _Found) -> str:
    return first_few([_format_code(code, found.kind) for code in sorted(found.codes)], 20)


def _find_codes(folder: Path, masks: Iterable[str]) -> _Found:
    """Return the values in masks; colors, if a mask has colors or the palettes differ."""
    problems: list[str] = []
    values: set[int] = set()
    colors: set[int] = set()
    color_of: dict[int, int] = {}
    kind: Kind = "value"
    for path in masks:
        try:
            raw = _read_raw(path)
        except DataError as error:
            problems.append(error.problem)
            continue
        codes = np.unique(raw.pixels)
        if raw.kind == "color":
            kind = "color"
            colors.update(codes.tolist())
            continue
        values.update(codes.tolist())
        shown = codes * GRAY if raw.palette is None else raw.palette[codes]
        colors.update(shown.tolist())
        if raw.palette is not None:
            for code, color in zip(codes.tolist(), shown.tolist(), strict=True):
                if color_of.setdefault(code, color) != color:
                    kind = "color"
    raise_problems(problems, folder)
    return _Found(kind, frozenset(colors if kind == "color" else values))


def _read_raw(path: str) -> _Raw:
    """Return the raw content of a mask file, upright."""
    try:
        with open_image(Path(path), path) as image:
            if image.format in LOSSY or image.info.get("compression") == "jpeg":
                raise DataError(f"the mask {path!r} has lossy compression, which alters values; save masks as PNG")
            return _pixels_of(apply_orientation(image), path)
    except ImageError as error:
        raise DataError(f"the mask {error.problem}", hint=error.hint) from error


def _pixels_of(upright: Image.Image, path: str) -> _Raw:
    mode = upright.mode
    if mode == "P":
        colors = np.array(upright.getpalette("RGB"), np.int32).reshape(-1, 3)
        palette = np.zeros(256, np.int32)
        palette[: len(colors)] = _pack(colors)
        return _Raw(np.array(upright, np.int32), "value", palette)
    if mode in ("LA", "PA", "RGBA", "RGB"):
        return _split_colors(np.array(upright.convert("RGBA"), np.int32), path)
    if mode not in ("1", "L", "F") and not mode.startswith("I"):
        raise DataError(f"the mask {path!r} has mode {mode!r}; save masks with a value or an RGB color per pixel")
    pixels = np.array(upright)
    values = np.nan_to_num(pixels, nan=-1).astype(np.int32)
    if (values != pixels).any() or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DataError(f"the mask {path!r} has values that are not integers from 0 to 65535")
    return _Raw(values, "value")


def _split_colors(pixels: NDArray[np.int32], path: str) -> _Raw:
    """Return the colors (H, W) of RGBA pixels (H, W, 4), or their values if all pixels are gray."""
    colors, alpha = _pack(pixels[..., :3]), pixels[..., 3]
    if len(np.unique(colors)) < len(np.unique(colors << 8 | alpha)):
        raise DataError(
            f"the mask {path!r} has pixels of equal color and different transparency; save it without transparency"
        )
    gray = pixels[..., 0]
    return _Raw(gray, "value") if (colors == gray * GRAY).all() else _Raw(colors, "color")


def _pack(colors: NDArray[np.int32]) -> NDArray[np.int32]:
    packed: NDArray[np.int32] = colors @ np.array([0x10000, 0x100, 1])
    return packed


def _read_table(folder: Path) -> tuple[tuple[str, ...], Kind, dict[int, int]]:
    """Return the classes in the table of a folder, and value or color → label if the table defines these."""
    places = [place / name for place in (folder, folder / "train") for name in TABLES]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return (), "value", {}
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not UTF-8 text: {error}") from error
    lines = [line for line in lines if not line.startswith("# ")]
    if path.suffix == ".csv":
        # Skip the header.
        lines = lines[1:]
    rows = next((found for found in ([row.fullmatch(line) for line in lines] for row in ROWS) if all(found)), [])
    if not rows and path.name != NAMES:
        raise DataError(f"{str(path)!r} is not a table of classes with colors or values; {ADVICE}")
    parts = [row.groupdict() for row in rows if row]
    classes = tuple(part["name"].strip() for part in parts) or tuple(lines)
    _check_names(path, classes)
    kind: Kind = "color" if parts and "red" in parts[0] else "value"
    numbers = [[int(part[key]) for key in (COLUMNS if kind == "color" else ("value",))] for part in parts]
    limit = 255 if kind == "color" else 65535
    if any(max(row) > limit for row in numbers):
        raise DataError(f"{str(path)!r} has a {kind} above the maximum of {limit}; {ADVICE}")
    codes = [_pack(np.array(row)).item() if kind == "color" else row[0] for row in numbers]
    if len(set(codes)) < len(codes):
        repeated = next(code for code in codes if codes.count(code) > 1)
        raise DataError(
            f"{str(path)!r} has the {kind} {_format_code(repeated, kind)} twice; give each class a different {kind}"
        )
    return classes, kind, {code: label for label, code in enumerate(codes)}


def _check_names(path: Path, classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise DataError(f"{str(path)!r} has fewer than two classes; list all of them, the background first")
    if len(classes) > IGNORED:
        raise DataError(f"{str(path)!r} has {len(classes)} classes; at most {IGNORED} are possible")
    if "" in classes or len(set(classes)) < len(classes):
        unusable = next(name for name in classes if not name or classes.count(name) > 1)
        what = f"the class {unusable!r} twice" if unusable else "an empty line in place of a class"
        raise DataError(f"{str(path)!r} has {what}; give each class a unique name")
