"""What the values and colours of masks stand for: reading them, and tables of the classes."""

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

Kind = Literal["value", "colour"]

NAMES = "classes.txt"
COLUMNS = ("red", "green", "blue")
TABLES = (NAMES, "labelmap.txt", "label_colors.txt", "class_dict.csv", "_classes.csv")
"""Files that name the classes: our own, and those of CVAT, CamVid and Roboflow. The first that exists counts."""

ROWS: Sequence[re.Pattern[str]] = (
    re.compile(r"(?P<red>\d+)[\s,]+(?P<green>\d+)[\s,]+(?P<blue>\d+)[\s,:]+(?P<name>.+)"),
    re.compile(r"(?P<name>.+?)\s*[,:]\s*(?P<red>\d+)\s*,\s*(?P<green>\d+)\s*,\s*(?P<blue>\d+)\s*(:.*)?"),
    re.compile(r"(?P<value>\d+)[\s,:]+(?P<name>.+)"),
)

IGNORED_VALUES = frozenset({IGNORED, 65535})
"""The largest values of 8 and 16 bits."""

CODE_NAME = re.compile(r"class \d+|#[0-9a-f]{6}")
"""Names of classes that are called by their values or colours, as those of masks without a table."""

TWO_CLASSES = ("class 0", "class 1")
"""Those of masks in black and white."""

VOID = 0xE0E0C0
"""Colour of Pascal VOC's outlines, which have no class."""

GREY = 0x010101
LOSSY = ("JPEG", "MPO", "WEBP")
SPARSE, NEAR_WHITE = 64, 230
"""Beyond these values, classes with large gaps, or any, look like levels of grey, of which 255 may be one."""

ADVICE = (
    "name them in 'classes.txt', a line each, beginning with the value or the colour: '0 background', '255 road', or "
    "'128 64 128 road'"
)


@dataclass(frozen=True)
class Coding:
    """Which class every value or colour of a data set's masks has.

    Args:
        classes: the classes' names.
        kind: whether masks are read as values or as colours, 0xRRGGBB.
        labels: value or colour → class, or `IGNORED`.
    """

    classes: tuple[str, ...]
    kind: Kind
    labels: Mapping[int, int]

    def read(self, path: str) -> NDArray[np.uint8]:
        """Read the class of every pixel (H, W).

        Raises:
            DataError: the mask cannot be read, or has a value or colour that stands for no class.
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
                f"has the value {code}, but there are {count} classes, from 0 to {count - 1}, and {IGNORED} for what "
                "is ignored"
            )
        return f"has the {self.kind} {_format_code(code, self.kind)}, which stands for no class"


class _Raw(NamedTuple):
    """A mask as its file has it: values or indices of a palette, with the palette, or colours."""

    pixels: NDArray[np.int32]
    kind: Kind
    palette: NDArray[np.int32] | None = None

    def codes_of(self, kind: Kind, path: str) -> NDArray[np.int32]:
        if kind == self.kind:
            return self.pixels
        if kind == "value":
            raise DataError(f"the mask {path!r} is coloured, and other masks are not")
        return self.pixels * GREY if self.palette is None else self.palette[self.pixels]


class _Found(NamedTuple):
    """The values that occur in masks, or their colours where one has colours, and where palettes disagree."""

    kind: Kind
    codes: frozenset[int]


def find_coding(folder: Path, masks: Sequence[str], sampled: int, known: tuple[str, ...] | None = None) -> Coding:
    """Return what the values of a folder's masks stand for; without a table, those of a model's `known` classes.

    All masks are read, unless "classes.txt" only names the classes and the sampled ones have such values.

    Raises:
        DataError: masks cannot be read, or it is ambiguous what their values stand for.
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
    """Return the coding of classes that have names without values."""
    if found.kind == "colour":
        raise DataError(f"the masks in {str(folder)!r} are coloured: {_list_codes(found)}; {ADVICE}")
    positive = found.codes - {0}
    if positive & set(range(len(names))):
        return Coding(names, "value", _in_order(range(len(names))))
    if len(found.codes) == len(names):
        listed = ", ".join(map(repr, names))
        logger.warning("%r: the masks' values %s are %s", str(folder), _list_codes(found), listed)
        return Coding(names, "value", _in_order(sorted(found.codes)))
    raise DataError(
        f"the masks in {str(folder)!r} have the values {_list_codes(found)}, but there are {len(names)} classes; "
        f"{ADVICE}"
    )


def _known(folder: Path, classes: tuple[str, ...], found: _Found) -> Coding:
    """Return the coding of masks that a model of these classes is evaluated on, which may lack values."""
    white = found.codes & IGNORED_VALUES
    is_coded = all(map(CODE_NAME.fullmatch, classes))
    is_binary = len(classes) == 2 and (not is_coded or classes == TWO_CLASSES)
    if found.kind == "value" and is_binary and white and found.codes <= white | {0}:
        logger.warning("%r: masks of %s are read as two classes", str(folder), _list_codes(found))
        return Coding(classes, "value", _in_order([0, max(white)]))
    if found.codes <= _ignored(found.kind).keys():
        raise DataError(
            f"the masks in {str(folder)!r} have no {found.kind} but {_list_codes(found)}, which is ignored; {ADVICE}"
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
            f"the masks in {str(folder)!r} have the {found.kind}s {_list_codes(found)}, and the model has the classes "
            f"{first_few([*map(repr, classes)], 5)}; {ADVICE}"
        )
    return Coding(classes, found.kind, labels)


def _unnamed(folder: Path, found: _Found) -> Coding:
    """Return the coding of classes that are called by their values or colours."""
    codes = sorted(found.codes - _ignored(found.kind).keys())
    if found.kind == "value" and codes == [0] and len(found.codes) == 2:
        # Black and white, the commonest kind.
        logger.warning("%r: masks of %s are read as two classes", str(folder), _list_codes(found))
        return Coding(TWO_CLASSES, "value", _in_order(sorted(found.codes)))
    if len(codes) < 2:
        raise DataError(
            f"the masks in {str(folder)!r} have no {found.kind} but {_list_codes(found)}; two classes are needed, of "
            "which the background is one"
        )
    if len(codes) > IGNORED:
        raise DataError(
            f"the masks in {str(folder)!r} have {len(codes)} {found.kind}s, as drawings with soft edges and numbered "
            f"objects do; there can be {IGNORED} classes: {ADVICE}"
        )
    if found.kind == "colour":
        logger.warning("%r: %d classes, a colour each: %s", str(folder), len(codes), _list_codes(found))
        return Coding(tuple(_code_name(code, "colour") for code in codes), "colour", _in_order(codes, "colour"))
    levels = codes[-1] >= NEAR_WHITE or codes[-1] >= max(SPARSE, 4 * len(codes))
    if IGNORED in found.codes and levels:
        raise DataError(
            f"the masks in {str(folder)!r} have the values {_list_codes(found)}, and {IGNORED} may be a class or what "
            f"is ignored; {ADVICE}"
        )
    if codes[-1] >= len(codes):
        logger.warning("%r: %d classes, a value each: %s", str(folder), len(codes), first_few([*map(str, codes)], 20))
    return Coding(tuple(_code_name(code, "value") for code in codes), "value", _in_order(codes))


def _ignored(kind: Kind) -> dict[int, int]:
    return dict.fromkeys(IGNORED_VALUES if kind == "value" else (VOID,), IGNORED)


def _in_order(codes: Iterable[int], kind: Kind = "value") -> dict[int, int]:
    """Return the labels of codes that are numbered in their order."""
    return {**_ignored(kind), **{code: label for label, code in enumerate(codes)}}


def _code_name(code: int, kind: Kind) -> str:
    """Return the name of a class that is called by its value or colour, as `CODE_NAME` matches it."""
    return f"class {code}" if kind == "value" else _format_code(code, kind)


def _format_code(code: int, kind: Kind) -> str:
    return str(code) if kind == "value" else f"#{code:06x}"


def _list_codes(found: _Found) -> str:
    return first_few([_format_code(code, found.kind) for code in sorted(found.codes)], 20)


def _find_codes(folder: Path, masks: Iterable[str]) -> _Found:
    """Return the values or colours in masks; palettes that disagree count as colours."""
    problems: list[str] = []
    values: set[int] = set()
    colours: set[int] = set()
    painted: dict[int, int] = {}
    kind: Kind = "value"
    for path in masks:
        try:
            raw = _read_raw(path)
        except DataError as error:
            problems.append(error.problem)
            continue
        codes = np.unique(raw.pixels)
        if raw.kind == "colour":
            kind = "colour"
            colours.update(codes.tolist())
            continue
        values.update(codes.tolist())
        shown = codes * GREY if raw.palette is None else raw.palette[codes]
        colours.update(shown.tolist())
        if raw.palette is not None:
            for code, colour in zip(codes.tolist(), shown.tolist(), strict=True):
                if painted.setdefault(code, colour) != colour:
                    kind = "colour"
    raise_problems(problems, folder)
    return _Found(kind, frozenset(colours if kind == "colour" else values))


def _read_raw(path: str) -> _Raw:
    """Return a mask as its file has it, upright."""
    try:
        with open_image(Path(path), path) as image:
            if image.format in LOSSY or image.info.get("compression") == "jpeg":
                raise DataError(f"the mask {path!r} is a JPEG or WebP file, which changes values; save masks as PNG")
            return _pixels_of(apply_orientation(image), path)
    except ImageError as error:
        raise DataError(f"the mask {error.problem}", hint=error.hint) from error


def _pixels_of(upright: Image.Image, path: str) -> _Raw:
    mode = upright.mode
    if mode == "P":
        colours = np.array(upright.getpalette("RGB"), np.int32).reshape(-1, 3)
        palette = np.zeros(256, np.int32)
        palette[: len(colours)] = _pack(colours)
        return _Raw(np.array(upright, np.int32), "value", palette)
    if mode in ("LA", "PA", "RGBA", "RGB"):
        return _split_colours(np.array(upright.convert("RGBA"), np.int32), path)
    if mode not in ("1", "L", "F") and not mode.startswith("I"):
        raise DataError(f"the mask {path!r} is of mode {mode!r}; masks have a value or an RGB colour for each pixel")
    pixels = np.array(upright)
    values = np.nan_to_num(pixels, nan=-1).astype(np.int32)
    if (values != pixels).any() or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DataError(f"the mask {path!r} has values that are no whole numbers from 0 to 65535")
    return _Raw(values, "value")


def _split_colours(pixels: NDArray[np.int32], path: str) -> _Raw:
    """Return colours (H, W), or values where all are grey, of RGBA pixels (H, W, 4)."""
    colours, alpha = _pack(pixels[..., :3]), pixels[..., 3]
    if len(np.unique(colours)) < len(np.unique(colours << 8 | alpha)):
        raise DataError(
            f"the mask {path!r} has pixels of one colour that are more and less transparent; save it without "
            "transparency"
        )
    grey = pixels[..., 0]
    return _Raw(grey, "value") if (colours == grey * GREY).all() else _Raw(colours, "colour")


def _pack(colours: NDArray[np.int32]) -> NDArray[np.int32]:
    packed: NDArray[np.int32] = colours @ np.array([0x10000, 0x100, 1])
    return packed


def _read_table(folder: Path) -> tuple[tuple[str, ...], Kind, dict[int, int]]:
    """Return the classes that a file names, and the label of every value or colour where it has them."""
    places = [place / name for place in (folder, folder / "train") for name in TABLES]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return (), "value", {}
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not text in UTF-8: {error}") from error
    lines = [line for line in lines if not line.startswith("# ")]
    if path.suffix == ".csv":
        # The first line has the columns' titles.
        lines = lines[1:]
    rows = next((found for found in ([row.fullmatch(line) for line in lines] for row in ROWS) if all(found)), [])
    if not rows and path.name != NAMES:
        raise DataError(f"{str(path)!r} is not a table of classes and their colours or values; {ADVICE}")
    parts = [row.groupdict() for row in rows if row]
    classes = tuple(part["name"].strip() for part in parts) or tuple(lines)
    _check_names(path, classes)
    kind: Kind = "colour" if parts and "red" in parts[0] else "value"
    numbers = [[int(part[key]) for key in (COLUMNS if kind == "colour" else ("value",))] for part in parts]
    if any(max(row) > (255 if kind == "colour" else 65535) for row in numbers):
        raise DataError(f"{str(path)!r} has a {kind} beyond the largest; {ADVICE}")
    codes = [_pack(np.array(row)).item() if kind == "colour" else row[0] for row in numbers]
    if len(set(codes)) < len(codes):
        repeated = next(code for code in codes if codes.count(code) > 1)
        raise DataError(f"{str(path)!r} has the {kind} {_format_code(repeated, kind)} twice; give every class its own")
    return classes, kind, {code: label for label, code in enumerate(codes)}


def _check_names(path: Path, classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise DataError(f"{str(path)!r} names fewer than two classes; the background is one of them, and the first")
    if len(classes) > IGNORED:
        raise DataError(f"{str(path)!r} names {len(classes)} classes; masks of 8 bits have room for {IGNORED}")
    if "" in classes or len(set(classes)) < len(classes):
        unusable = next(name for name in classes if not name or classes.count(name) > 1)
        what = f"{unusable!r} twice" if unusable else "a class without a name, on an empty line"
        raise DataError(f"{str(path)!r} has {what}; give every class a name of its own")
