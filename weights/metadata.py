"""What a file of weights says of its model: our description as the text metadata of a safetensors file. No torch.

Keys begin with `featuretap.`; values are plain text or JSON. Schema 1 is read for ever; keys that a later version adds
without changing the schema are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featuretap.specs.description import Description
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import OptionError, WeightsError
from featuretap.support.version import __version__

__all__ = ["Record", "metadata_of", "read_record"]

SCHEMA = "1"
PREFIX = "featuretap."


@dataclass(frozen=True)
class Record:
    """What is written into a file.

    Args:
        description: name, options, taps, head, classes, preprocessing and origin of the model.
        layout: whose names the tensors bear: "featuretap", "torchvision" or "timm".
        norm_eps: epsilon of the batch norms by part, "backbone" and "head", and of those that differ by their path.
        network: `network_digest` of the backbone, empty where it is no table.
        by_name: whether the registry knew the backbone by its name; false where a `BackboneSpec` was built directly.
    """

    description: Description
    layout: str
    norm_eps: Mapping[str, float] = field(default_factory=dict)
    network: str = ""
    by_name: bool = True


def metadata_of(record: Record) -> dict[str, str]:
    """Return the metadata of a file, without anything that equal models could differ in, such as a time or a path.

    Raises:
        WeightsError: an option's value cannot be written, or there are other numbers of classes and of their names.
    """
    said = record.description
    _check_classes(said)
    values = {
        "name": said.name,
        "options": dict(said.options),
        "taps": list(said.taps),
        "head": said.head,
        "num_classes": said.num_classes,
        "preprocessing": said.preprocessing.as_table(),
        "classes": said.classes,
        "weights": None if isinstance(said.weights, Path) else said.weights,
        "layout": record.layout,
        "norm_eps": dict(record.norm_eps),
        "network": record.network,
        "by_name": record.by_name,
    }
    written = {"format": "pt", f"{PREFIX}schema": SCHEMA, f"{PREFIX}version": __version__}
    # A head without classes says so, so that one whose classes are missing is known to be damaged.
    stated = {"num_classes"} if said.head else set()
    for key, value in values.items():
        if value is not None or key in stated:
            written[PREFIX + key] = value if isinstance(value, str) else _json(key, value)
    return written


def read_record(path: Path, metadata: Mapping[str, str]) -> Record | None:
    """Return what the metadata of a file says, or None where it says nothing of ours.

    Raises:
        WeightsError: a newer schema, or metadata that contradicts it.
    """
    if not any(key.startswith(PREFIX) for key in metadata):
        return None
    schema = metadata.get(f"{PREFIX}schema")
    if schema != SCHEMA:
        writer = metadata.get(f"{PREFIX}version", "an unknown version")
        raise WeightsError(
            f"{str(path)!r} was written by featuretap {writer} in schema {schema!r}, and {__version__} "
            f"reads {SCHEMA!r}; update featuretap"
        )
    values: dict[str, Any] = dict.fromkeys(OPTIONAL)
    for key, (what, decode, accepts) in FIELDS.items():
        text = metadata.get(PREFIX + key)
        if text is None:
            if key not in OPTIONAL:
                raise WeightsError(f"{str(path)!r} is no sound file of weights: its metadata lacks {PREFIX}{key}")
            continue
        try:
            value = decode(text)
        except (ValueError, RecursionError):
            value = _Unreadable
        without = key == "num_classes" and value is None and f"{PREFIX}head" in metadata
        if not without and (value is _Unreadable or not accepts(value)):
            raise WeightsError(
                f"{str(path)!r} is no sound file of weights: its metadata has {PREFIX}{key}={text[:60]!r}, "
                f"which should be {what}"
            )
        values[key] = value
    if (f"{PREFIX}head" in metadata) != (f"{PREFIX}num_classes" in metadata):
        raise WeightsError(
            f"{str(path)!r} is no sound file of weights: it names a head without classes, or the reverse"
        )
    classes = values["classes"]
    if isinstance(classes, list) and len(classes) != values["num_classes"]:
        raise WeightsError(
            f"{str(path)!r} is no sound file of weights: it has {values['num_classes'] or 'no'} classes, and names for "
            f"{len(classes)}"
        )
    return _record(path, values)


def _check_classes(said: Description) -> None:
    classes = said.classes
    if isinstance(classes, str):
        if classes.startswith("["):
            raise WeightsError(
                f"cannot save a model with the label set {classes!r}: only a list of names begins with '['; give the "
                "names as a tuple, or another name"
            )
        return
    if not all(isinstance(name, str) for name in classes):
        raise WeightsError(f"cannot save a model with classes {classes!r}: names are text")
    if len(classes) != said.num_classes:
        raise WeightsError(
            f"cannot save a model of {said.num_classes or 'no'} classes with names for {len(classes)}; name each class"
        )


def _record(path: Path, values: dict[str, Any]) -> Record:
    prepared: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["preprocessing"].items()}
    try:
        preprocessing = Preprocessing(**prepared)
    except (OptionError, TypeError) as error:
        raise WeightsError(f"{str(path)!r} is no sound file of weights: {error}") from error
    description = Description(
        values["name"],
        tuple(values["taps"]),
        values["options"],
        values["head"],
        values["num_classes"],
        preprocessing,
        values["weights"],
        values["classes"] if isinstance(values["classes"], str) else tuple(values["classes"]),
    )
    return Record(description, values["layout"], values["norm_eps"], values["network"], values["by_name"])


class _Unreadable:
    """In place of a value that is no JSON."""


def _json(key: str, value: Any) -> str:
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False)
        if json.loads(text) != _with_lists(value):
            raise ValueError("keys that are no text")
        return text
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"cannot save a model with {key} {value!r}: a file of weights holds numbers and text only; "
            "build the model with plain values"
        ) from error


def _with_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_lists(inner) for key, inner in value.items()}
    return [_with_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def _classes(text: str) -> Any:
    return _decoded(text) if text.startswith("[") else text


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _decoded(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1000


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


ARGUMENTS = {"self", "name", "features_only", "taps", "head", "num_classes", "pretrained"}
"""Arguments of `build` that have metadata of their own, or none, and are no options."""

Field = tuple[str, Callable[[str], Any], Callable[[Any], bool]]

FIELDS: dict[str, Field] = {
    "name": ("a name", str, bool),
    "layout": ("the name of a layout", str, bool),
    "options": ("options by name", _decoded, lambda value: isinstance(value, dict) and not ARGUMENTS & set(value)),
    "taps": (
        "a list of tap addresses",
        _decoded,
        lambda value: isinstance(value, list) and value != [] and all(isinstance(v, str) for v in value),
    ),
    "norm_eps": (
        "a small number by part",
        _decoded,
        lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    ),
    "preprocessing": ("a table", _decoded, lambda value: isinstance(value, dict)),
    "network": ("a digest", str, lambda value: True),
    "by_name": ("true or false", _decoded, lambda value: isinstance(value, bool)),
    "head": ("the name of a head", str, bool),
    "num_classes": ("a number of classes", _decoded, _is_count),
    "classes": (
        "the name of a label set, or a list of names",
        _classes,
        lambda value: isinstance(value, str) or all(isinstance(name, str) for name in value),
    ),
    "weights": ("the name of published weights", str, bool),
}
OPTIONAL = frozenset({"head", "num_classes", "weights"})
