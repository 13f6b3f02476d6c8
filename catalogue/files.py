"""The format of catalogue files: featuretap's `registry.toml`, a plugin's `registry.toml`, a user's `featuretap.toml`.

A user's file may define variants, aliases, weights and plugin policy, but must not refer to code.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.specs import BackboneSpec
from featuretap.specs.options import check_options, options_of, replace_defaults, split_options
from featuretap.specs.preprocessing import Preprocessing
from featuretap.specs.validation import COUNT, Check, check_name, is_list_of, is_number
from featuretap.support.errors import CatalogueError, FeaturetapError, SpecError, did_you_mean
from featuretap.support.import_strings import load
from featuretap.support.regular_files import read_settings

SCHEMA = 1
IMPORT_STRING = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


UNPUBLISHED = ("width", "padding")
"""Options that make the published weights of a variant's base unusable."""


def _is_number(value: Any) -> bool:
    return is_number(value) and isfinite(value)


TEXT: Check = ("a string", lambda value: isinstance(value, str) and value != "")
TEXTS: Check = ("a list of strings", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value))
TABLE: Check = ("a table", lambda value: isinstance(value, dict))
BOOLEAN: Check = ("true or false", lambda value: isinstance(value, bool))
NUMBER: Check = ("a positive number", lambda value: _is_number(value) and value > 0)
PIXELS = COUNT
NUMBERS: Check = ("a list of numbers", lambda value: is_list_of(value, _is_number))
SHA256: Check = (
    "8 to 64 lower-case hexadecimal digits",
    lambda value: isinstance(value, str) and 8 <= len(value) <= 64 and set(value) <= set("0123456789abcdef"),
)
INTERPOLATION: Check = ("'bilinear' or 'bicubic'", lambda value: value in ("bilinear", "bicubic"))

FILE = {"schema": PIXELS, "backbones": TABLE, "weights": TABLE}
VARIANT = {"base": TEXT, "options": TABLE, "aliases": TEXTS, "description": TEXT}
CODE = {"spec": TEXT}
POLICY = {"disable": TEXTS, "only": TEXTS}
WEIGHTS = {
    "url": TEXT,
    "urls": TEXTS,
    "sha256": SHA256,
    "layout": TEXT,
    "norm_eps": NUMBER,
    "classes": TEXT,
    "default": BOOLEAN,
    "preprocessing": TABLE,
    "megabytes": NUMBER,
    "license": TEXT,
    "accuracy": NUMBER,
    "head": TEXT,
    "options": TABLE,
}
NEEDED = ("layout", "norm_eps")
PREPROCESSING = {"resize": PIXELS, "crop": PIXELS, "mean": NUMBERS, "std": NUMBERS, "interpolation": INTERPOLATION}


@dataclass(frozen=True)
class CatalogueFile:
    """A validated catalogue file. Names of bases are not resolved yet.

    Args:
        path: path of the file.
        backbones: mapping from name to the entry's table.
        weights: entries of published weights.
        disable: distributions whose plugins are not loaded.
        only: the only distributions whose plugins are loaded; None for all.
        mirrors: mapping from URL prefix to replacement.
    """

    path: Path
    backbones: Mapping[str, Mapping[str, Any]]
    weights: tuple[WeightsEntry, ...]
    disable: frozenset[str] = frozenset()
    only: frozenset[str] | None = None
    mirrors: Mapping[str, str] = field(default_factory=dict)

    def error(self, key: str, problem: str) -> CatalogueError:
        """Return an error about a `key` of this file, with this `problem`."""
        return CatalogueError(f"{self.path}: {key} {problem}")

    def foundation(self, name: str) -> str:
        """Return the name that the variant `name` is ultimately based on and that this file does not define.

        If the variant is based on itself, the name is one that the file defines.
        """
        owners = {alias: owner for owner, entry in self.backbones.items() for alias in entry.get("aliases", ())}
        owners |= {owner: owner for owner in self.backbones}
        below: set[str] = set()
        while owners.get(name, name) in self.backbones.keys() - below:
            below.add(owners[name])
            name = self.backbones[owners[name]].get("base", "")
        return name

    def resolve(self, name: str, lookup: Callable[[str], BackboneSpec], above: tuple[str, ...] = ()) -> BackboneSpec:
        """Return the spec of a backbone in this file.

        Args:
            name: name of the backbone.
            lookup: function that returns the spec of a backbone that this file does not define.
            above: names of the variants that are being resolved.

        Returns:
            The spec, with the options of the entry as defaults.

        Raises:
            CatalogueError: the base does not exist, is circular, or does not take the options.
        """
        entry, key = self.backbones[name], f"backbones.{name}"
        if name in above:
            raise self.error(f"{key}.base", f"is circular: {' -> '.join((*above, name))}")
        try:
            if "spec" in entry:
                base = load(entry["spec"])
            elif entry["base"] in self.backbones and entry["base"] != name:
                base = self.resolve(entry["base"], lookup, (*above, name))
            else:
                base = lookup(entry["base"])
            return _make_variant(name, entry, base)
        except CatalogueError:
            raise
        except FeaturetapError as error:
            raise self.error(key, f"cannot be used: {error}") from error

    def resolve_all(
        self, lookup: Callable[[str], BackboneSpec], deferred: Container[str] = ()
    ) -> dict[str, BackboneSpec | CatalogueError]:
        """Resolve all backbones of this file.

        Args:
            lookup: function that returns the spec of a backbone that this file does not define.
            deferred: names of backbones to skip.

        Returns:
            A mapping from name to spec, or to the error that the entry raises.
        """
        found: dict[str, BackboneSpec | CatalogueError] = {}
        owners = {name: name for name in self.backbones}
        for name, entry in self.backbones.items():
            try:
                if name not in deferred:
                    found[name] = self.resolve(name, lookup)
                for alias in dict.fromkeys(entry.get("aliases", ())):
                    if alias in owners:
                        raise self.error(
                            f"backbones.{name}.aliases", f"has {alias!r}, which already names {owners[alias]!r}"
                        )
                    owners[alias] = name
            except CatalogueError as error:
                found[name] = error
        return found


def _make_variant(name: str, entry: Mapping[str, Any], base: BackboneSpec) -> BackboneSpec:
    """Return `base` under another name, with the options of an entry as defaults."""
    options = entry.get("options", {})
    defaults = options_of(base)
    split_options(base, None, options, defaults)
    check_options(base, {**defaults, **options})
    # With other options, the published weights of the base still fit after adaptation or pruning. A width creates
    # tensors that they cannot fill, and padding changes what the tensors compute.
    same = "base" in entry and all(options.get(name, defaults.get(name)) == defaults.get(name) for name in UNPUBLISHED)
    return replace(
        base,
        name=name,
        variant_of=(base.variant_of or base.name) if "base" in entry else "",
        published_as=(base.published_as or base.name) if same else "",
        options=replace_defaults(base, options),
        aliases=tuple(entry.get("aliases", ())),
        description=entry.get("description", base.description),
    )


@dataclass(frozen=True)
class PluginCatalogue:
    """Specs and weights from a plugin's `registry.toml`, for its hooks to return.

    Args:
        backbones: specs of the backbones.
        weights: entries of published weights.
    """

    backbones: tuple[BackboneSpec, ...]
    weights: tuple[WeightsEntry, ...]


def load_catalogue(path: Path) -> PluginCatalogue:
    """Read a plugin's `registry.toml`. Bases must be in the same file.

    Args:
        path: path of the file.

    Returns:
        The specs and weights to return from hooks.

    Raises:
        CatalogueError: the file is invalid. The message names file and key.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from featuretap.registry.hookspecs import load_catalogue
        >>> text = '''
        ... schema = 1
        ... [backbones.tinynet]
        ... spec = "featuretap.backbones.mobilenet_v3:SMALL"
        ... [backbones.tinynet_050]
        ... base = "tinynet"
        ... options = { width = 0.5 }
        ... '''
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "registry.toml")
        ...     _ = path.write_text(text)
        ...     catalogue = load_catalogue(path)
        >>> [(spec.name, dict(spec.options)) for spec in catalogue.backbones]
        [('tinynet', {}), ('tinynet_050', {'width': 0.5})]
    """
    file = read_catalogue(path, code=True)

    def absent(base: str) -> BackboneSpec:
        raise file.error("base", f"{base!r} is not in this file{did_you_mean(base, file.backbones)}")

    backbones = []
    for spec in file.resolve_all(absent).values():
        if isinstance(spec, CatalogueError):
            raise spec
        backbones.append(spec)
    return PluginCatalogue(tuple(backbones), file.weights)


def read_catalogue(path: Path, *, code: bool) -> CatalogueFile:
    """Read and validate a catalogue file.

    Args:
        path: path of a TOML file.
        code: True for a plugin's file, whose entries may refer to code (`spec`). False for a user's file, which may
            define plugin policy and mirrors instead.

    Returns:
        The validated file.

    Raises:
        CatalogueError: the file cannot be read, or is invalid.
    """
    try:
        content = tomllib.loads(read_settings(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CatalogueError(f"cannot read the catalogue {str(path)!r}: {reason}") from error
    except (ValueError, RecursionError) as error:
        # ValueError also covers numbers with thousands of digits, and RecursionError deeply nested arrays.
        raise CatalogueError(f"{path}: not valid TOML: {error}") from error
    if content.get("schema") != SCHEMA:
        raise CatalogueError(
            f"{path}: schema is {content.get('schema', 'missing')!r}, but this version of featuretap reads {SCHEMA}; "
            f"write 'schema = {SCHEMA}' at the top, or update featuretap"
        )
    _check(path, "", content, FILE if code else {**FILE, "plugins": TABLE, "mirrors": TABLE})
    policy = content.get("plugins", {})
    _check(path, "plugins.", policy, POLICY)
    mirrors = content.get("mirrors", {})
    _check(path, "mirrors.", mirrors, dict.fromkeys(mirrors, TEXT))
    for name, entry in content.get("backbones", {}).items():
        _check_backbone(path, name, entry, code)
    return CatalogueFile(
        path,
        content.get("backbones", {}),
        tuple(_weights(path, name, entry, code) for name, entry in content.get("weights", {}).items()),
        frozenset(policy.get("disable", ())),
        frozenset(policy["only"]) if "only" in policy else None,
        mirrors,
    )


def _check(path: Path, prefix: str, table: Mapping[str, Any], keys: Mapping[str, Check]) -> None:
    for key, value in table.items():
        if key not in keys:
            hint = did_you_mean(key, keys) or ";"
            raise CatalogueError(f"{path}: {prefix}{key} is not a known key{hint} known keys: {', '.join(keys)}")
        what, accepts = keys[key]
        if not accepts(value):
            raise CatalogueError(f"{path}: {prefix}{key} must be {what}; got {value!r}")


def _check_table(path: Path, name: str, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise CatalogueError(f"{path}: {name} must be a table; got {entry!r}")


def _check_backbone(path: Path, name: str, entry: Any, code: bool) -> None:
    _check_table(path, f"backbones.{name}", entry)
    named_code = sorted({"spec", "factory"} & set(entry))
    if named_code and not code:
        raise CatalogueError(
            f"{path}: backbones.{name}.{named_code[0]} refers to code, which a user's catalogue must not; "
            "give a base and options, or write a plugin"
        )
    _check(path, f"backbones.{name}.", entry, {**CODE, **VARIANT} if code else VARIANT)
    if not code:
        _check_options(path, f"backbones.{name}", entry)
    try:
        check_name("backbone", name, entry.get("aliases", ()))
    except SpecError as error:
        raise CatalogueError(f"{path}: backbones.{name} cannot be used: {error}") from error
    for label in (name, *entry.get("aliases", ())):
        if "/" in label:
            raise CatalogueError(
                f"{path}: backbones.{name} has the name {label!r}, but slashes are reserved for namespaces; "
                "choose another name"
            )
    if ("spec" in entry) == ("base" in entry):
        needed = "either spec or base" if code else "a base"
        raise CatalogueError(f"{path}: backbones.{name} needs {needed}")


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value if isinstance(value, list) else (*value, *value.values()):
            yield from _strings(inner)


def _check_options(path: Path, name: str, entry: Mapping[str, Any]) -> None:
    for option, value in entry.get("options", {}).items():
        if any(map(IMPORT_STRING.fullmatch, _strings(value))):
            raise CatalogueError(
                f"{path}: {name}.options.{option} refers to code ({value!r}), which a user's catalogue must not; "
                "write a plugin"
            )


def _weights(path: Path, name: str, entry: Any, code: bool) -> WeightsEntry:
    _check_table(path, f'weights."{name}"', entry)
    _check(path, f'weights."{name}".', entry, WEIGHTS)
    if not code:
        _check_options(path, f"weights.{name}", entry)
    urls = entry.get("urls", [entry["url"]] if "url" in entry else [])
    missing = [*(() if urls else ("url",)), *(key for key in NEEDED if key not in entry)]
    if missing or "." not in name.strip("."):
        problem = f"is missing {', '.join(missing)}" if missing else "must be named 'backbone.tag'"
        raise CatalogueError(f'{path}: weights."{name}" {problem}')
    if "url" in entry and "urls" in entry:
        raise CatalogueError(f'{path}: weights."{name}" has both url and urls; list all addresses in urls')
    prepared = entry.get("preprocessing", {})
    _check(path, f'weights."{name}".preprocessing.', prepared, PREPROCESSING)
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in prepared.items()
    }
    try:
        addresses = {"url": urls[0], "urls": tuple(urls[1:])}
        return WeightsEntry(name=name, **{"sha256": "", **entry, **addresses, "preprocessing": Preprocessing(**values)})
    except FeaturetapError as error:
        raise CatalogueError(f"{path}: {error}") from error
