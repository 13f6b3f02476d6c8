"""Records of checkpoints: the description of a model as metadata of a safetensors file.

Keys begin with `featuretap.`. Values are plain text or JSON. Schema 1 will always be readable. Unknown keys, which
later versions may add without a new schema, are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featuretap.specs.description import Description
from featuretap.specs.preprocessing import Preprocessing
from featuretap.specs.validation import ARGUMENTS, Check, is_list_of, is_number, is_whole
from featuretap.support.errors import OptionError, WeightsError
from featuretap.support.version import __version__
from featuretap.weights.limits import LONGEST_CLASSES, LONGEST_FIELD, LONGEST_NAME, MOST_HEADS

SCHEMA = "1"
PREFIX = "featuretap."


@dataclass(frozen=True)
class Record:
    """The record of a model in a checkpoint.

    Args:
        description: name, options, taps, head, classes, preprocessing and origin of the model.
        layout: layout of the tensor names, such as "featuretap" or "timm".
        norm_eps: epsilon of the batch norms by part, "backbone" and "head", and of exceptions by path.
        network: `network_digest` of the backbone, or "" for backbones with a factory.
        by_name: whether the registry builds the backbone by name; False if it was built from a `BackboneSpec`.
        heads: for a model with several heads, name → record of the model with this head alone. The other fields then
            describe the backbone.
    """

    description: Description
    layout: str
    norm_eps: Mapping[str, float] = field(default_factory=dict)
    network: str = ""
    by_name: bool = True
    heads: Mapping[str, Record] = field(default_factory=dict)


def metadata_of(record: Record) -> dict[str, str]:
    """Return a record as metadata. Equal models give equal metadata, without times or paths.

    Args:
        record: the record.

    Returns:
        Key → text.

    Raises:
        WeightsError: the value of an option cannot be written, or the number of class names is wrong.
    """
    description = record.description
    _check_classes(description)
    values = {
        "name": description.name,
        "options": dict(description.options),
        "taps": list(description.taps),
        "head": description.head,
        "num_classes": description.num_classes,
        "preprocessing": description.preprocessing.as_table(),
        "classes": description.classes,
        "weights": None if isinstance(description.weights, Path) else description.weights,
        "layout": record.layout,
        "norm_eps": dict(record.norm_eps),
        "network": record.network,
        "by_name": record.by_name,
    }
    metadata = {"format": "pt", f"{PREFIX}schema": SCHEMA, f"{PREFIX}version": __version__}
    for key, value in values.items():
        # Heads without classes record null, so that a missing number is recognized as damage.
        if value is not None or (key == "num_classes" and description.head):
            text = value if isinstance(value, str) else _encode(key, value)
            if len(text) > _longest(key):
                raise WeightsError(
                    f"cannot save a model with {key} of {len(text):,} characters; shorten it to at most "
                    f"{_longest(key):,}"
                )
            metadata[PREFIX + key] = text
    if record.heads:
        # The order is the order of the model's outputs.
        heads = {name: dict(sorted(metadata_of(head).items())) for name, head in record.heads.items()}
        metadata[f"{PREFIX}heads"] = json.dumps(heads)
    return metadata


def read_record(path: Path, metadata: Mapping[str, str]) -> Record | None:
    """Return the record in the metadata of a file.

    Args:
        path: path of the file, for messages.
        metadata: key → text.

    Returns:
        The record, or None if there is none.

    Raises:
        WeightsError: the schema is newer, or the metadata is invalid.
    """
    if not any(key.startswith(PREFIX) for key in metadata):
        return None
    schema = metadata.get(f"{PREFIX}schema")
    if schema != SCHEMA:
        writer = metadata.get(f"{PREFIX}version", "an unknown version")
        raise WeightsError(
            f"{str(path)!r} was written by featuretap {writer} with schema {schema!r}, but featuretap {__version__} "
            f"reads schema {SCHEMA!r}; update featuretap"
        )
    problem = f"{str(path)!r} is not a valid weights file:"
    values: dict[str, Any] = dict.fromkeys(OPTIONAL)
    for key, (allowed, accepts) in FIELDS.items():
        text = metadata.get(PREFIX + key)
        if text is None and key in OPTIONAL:
            continue
        if text is None:
            raise WeightsError(f"{problem} its metadata does not have {PREFIX}{key}")
        if len(text) > _longest(key):
            raise WeightsError(
                f"{problem} its metadata has {PREFIX}{key} of {len(text):,} characters, but at most {_longest(key):,} "
                "are read"
            )
        value = _decode(key, text)
        if not (accepts(value) or (key == "num_classes" and value is None and f"{PREFIX}head" in metadata)):
            raise WeightsError(f"{problem} its metadata has {PREFIX}{key}={text[:60]!r}, which should be {allowed}")
        values[key] = value
    if (f"{PREFIX}head" in metadata) != (f"{PREFIX}num_classes" in metadata):
        raise WeightsError(f"{problem} it has a head without a number of classes, or the reverse")
    classes, num_classes = values["classes"], values["num_classes"]
    if isinstance(classes, list) and len(classes) != num_classes:
        raise WeightsError(f"{problem} it has {num_classes or 'no'} classes, but names for {len(classes)}")
    try:
        preprocessing = Preprocessing(**{key: _as_tuple(value) for key, value in values["preprocessing"].items()})
    except (OptionError, TypeError) as error:
        raise WeightsError(f"{problem} {error}") from error
    description = Description(
        values["name"],
        tuple(values["taps"]),
        values["options"],
        values["head"],
        num_classes,
        preprocessing,
        values["weights"],
        _as_tuple(classes),
    )
    heads = {name: read_record(path, head) for name, head in (values["heads"] or {}).items()}
    if not all(heads.values()):
        raise WeightsError(f"{problem} it has a head without a record")
    description = replace(description, heads={name: head.description for name, head in heads.items() if head})
    return Record(
        description,
        values["layout"],
        values["norm_eps"],
        values["network"],
        values["by_name"],
        heads,  # type: ignore[arg-type]
    )


def _check_classes(description: Description) -> None:
    classes = description.classes
    if isinstance(classes, str):
        if classes.startswith("["):
            raise WeightsError(
                f"cannot save a model with the label set {classes!r}: the name of a label set cannot begin with '['; "
                "pass the names of the classes as a tuple, or use another name"
            )
    elif not all(isinstance(name, str) for name in classes):
        raise WeightsError(f"cannot save a model with classes {classes!r}; use strings")
    elif len(classes) != description.num_classes:
        raise WeightsError(
            f"cannot save a model of {description.num_classes or 'no'} classes with names for {len(classes)}; name "
            "each class"
        )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _encode(key: str, value: Any) -> str:
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False)
        if json.loads(text) != _with_lists(value):
            raise ValueError("keys that are not text")
        return text
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"cannot save a model with {key} {value!r}: a weights file stores only numbers and text; build the model "
            "with such values"
        ) from error


def _with_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_lists(inner) for key, inner in value.items()}
    return [_with_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def _decode(key: str, text: str) -> Any:
    """Return the value of a field. Malformed JSON returns the exception, which no field accepts."""
    if key in TEXT or (key == "classes" and not text.startswith("[")):
        return text
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return error


def _longest(key: str) -> int:
    """Return the maximum number of characters of a field."""
    if key in ("classes", "heads"):
        return LONGEST_CLASSES
    return LONGEST_NAME if key in TEXT else LONGEST_FIELD


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_metadata(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_string, value.values())) and f"{PREFIX}heads" not in value


TEXT = frozenset({"name", "layout", "network", "head", "weights"})
"""Fields in plain text. Other fields are JSON."""

OPTIONAL = frozenset({"head", "num_classes", "weights", "heads"})

FIELDS: dict[str, Check] = {
    "name": ("a name", bool),
    "layout": ("the name of a layout", bool),
    "options": ("options by name", lambda value: isinstance(value, dict) and not ARGUMENTS & set(value)),
    "taps": ("a list of tap addresses", lambda value: is_list_of(value, _is_string)),
    "norm_eps": (
        "a table of small numbers",
        lambda value: isinstance(value, dict) and all(is_number(eps, 0, 999) for eps in value.values()),
    ),
    "preprocessing": ("a table", lambda value: isinstance(value, dict)),
    "network": ("a digest", _is_string),
    "by_name": ("true or false", lambda value: isinstance(value, bool)),
    "head": ("the name of a head", bool),
    "num_classes": ("a number of classes", lambda value: is_whole(value, 0, 2**31 - 1)),
    "classes": (
        "the name of a label set, or a list of names",
        lambda value: _is_string(value) or (isinstance(value, list) and all(map(_is_string, value))),
    ),
    "weights": ("the name of published weights", bool),
    "heads": (
        f"a record for each of at most {MOST_HEADS} heads",
        lambda value: (
            isinstance(value, dict) and 0 < len(value) <= MOST_HEADS and all(map(_is_metadata, value.values()))
        ),
    ),
}
