"""What the open namespaces `timm/` and `torchvision/` share: hooks, names, options, map sizes, download errors."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from featuretap.catalogue.hookspecs import hookimpl
from featuretap.specs import BackboneSpec
from featuretap.specs.addresses import LEVELS
from featuretap.support.errors import UnknownBackboneError, WeightsError, did_you_mean
from featuretap.support.import_strings import load
from featuretap.support.text import one_line

LEVEL_AT_STRIDE = {2**n: level for n, level in enumerate(LEVELS, start=1)}

Rounding = Literal["ceil", "floor"] | int

EVERYWHERE = "*/"
"""Beginning of a pattern that asks every namespace."""

REGISTERED = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
"""A function that timm or torchvision registers as a model."""

DIVISIBLE = 256
"""Height and width of an image that every usual stride divides."""
PROBES = (
    DIVISIBLE + 1,
    DIVISIBLE + 31,
    *sorted(range(DIVISIBLE + 2, DIVISIBLE + 31), key=lambda size: -(size & -size)),
)
"""Sizes to try: a map that rounds up grows at the first, one that rounds down not even at the second; then halving."""


def make_hooks(prefix: str, module: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the two hooks of a namespace, which import the module with its `find` and `match` on first use.

    Args:
        prefix: of the names: that of the library, and a slash.
        module: import path of the module.
    """

    def featuretap_find_backbone(name: str) -> BackboneSpec | None:
        return load(f"{module}:find", repr(name))(name) if name.startswith(prefix) else None

    def featuretap_match_backbones(pattern: str) -> Iterable[str] | None:
        if pattern.startswith(EVERYWHERE):
            return match_names(
                prefix, registered_names(prefix.rstrip("/")), f"{prefix}{pattern.removeprefix(EVERYWHERE)}"
            )
        return load(f"{module}:match", repr(pattern))(pattern) if pattern.startswith(prefix) else None

    return hookimpl(featuretap_find_backbone), hookimpl(featuretap_match_backbones)


def registered_names(library: str) -> set[str]:
    """Return the names of the models that a library registers, read from its source; nothing if it is not installed.

    Importing the library takes seconds, which is too long for a suggestion in an error message.
    """
    found = find_spec(library)
    folders = (found and found.submodule_search_locations) or []
    files = [file for folder in folders for file in Path(folder, "models").glob("*.py")]
    return {name for file in files for name in REGISTERED.findall(file.read_text(encoding="utf-8"))}


def match_names(prefix: str, networks: Iterable[str], pattern: str) -> list[str]:
    """Return the names of a namespace that match a shell pattern."""
    return [name for name in (f"{prefix}{network}" for network in networks) if fnmatchcase(name, pattern)]


def unknown_network(problem: str, prefix: str, network: str, known: Iterable[str]) -> UnknownBackboneError:
    """Return the error for a name that the library does not have, with the nearest that it has."""
    names = {name: f"{prefix}{name}" for name in known}
    hint = did_you_mean(network, names, names) or f"; featuretap list '{prefix}*' names them"
    return UnknownBackboneError(f"{problem} {network!r}{hint}")


def network_name(spec: BackboneSpec, prefix: str) -> str:
    """Return the library's name of a network; a variant of a user's catalogue has a name of its own."""
    return (spec.variant_of or spec.name).removeprefix(prefix)


def changed_options(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options to pass on: None and the defaults leave the choice to the library."""
    return {name: value for name, value in options.items() if value is not None and value != defaults.get(name)}


@contextmanager
def explain_download(weights: str, cached: bool, problem: str, by_hand: str) -> Iterator[None]:
    """Explain an error of a library that loads its own weights, and how to put the file into its cache by hand.

    Raises:
        WeightsError: they would have to be downloaded although downloads are forbidden, or the library failed.
    """
    from featuretap.weights.downloads import offline

    if not cached and offline():
        raise WeightsError(f"{weights!r} is not on this machine, and FEATURETAP_OFFLINE forbids downloads; {by_hand}")
    try:
        yield
    except Exception as error:
        # Libraries pass on whatever the libraries below them raise.
        raise WeightsError(f"{problem}: {one_line(str(error)) or type(error).__name__}; {by_hand}") from error


def find_roundings(
    strides: Sequence[int], measure: Callable[[int], Sequence[int]], usual_size: int = DIVISIBLE
) -> list[Rounding | None]:
    """Return the rounding of each map, as in `Tap`; None for a map whose size is not the image's divided by its stride.

    `measure` runs the network: size → heights of the maps of a square image, none where it refuses the size.
    `usual_size` is that of the images that the network was made for.
    """
    measure = cache(measure)
    accepted = next((size for size in (DIVISIBLE, usual_size) if measure(size)), None)
    if accepted is None:
        return ["ceil"] * len(strides)
    return [_find_rounding(index, stride, accepted, measure) for index, stride in enumerate(strides)]


def _find_rounding(index: int, stride: int, accepted: int, measure: Callable[[int], Sequence[int]]) -> Rounding | None:
    """Return the rounding of one map, whose height for an image of `size` pixels is `(size + added) // stride`.

    Each probe rules out values of `added`. Where several remain, because the network accepts one size only, or none,
    because it follows no such rule (MobileViT resizes its maps to an even number of pixels), "ceil" is preferred.
    """

    def fitting(candidates: Iterable[int], size: int) -> list[int]:
        return [added for added in candidates if (size + added) // stride == measure(size)[index]]

    candidates = fitting(range(stride), accepted)
    if not candidates:
        return None
    for size in PROBES:
        if len({(size + added) // stride for added in candidates}) > 1:
            if not measure(size):
                break
            candidates = fitting(candidates, size)
    if not candidates or stride - 1 in candidates:
        return "ceil"
    return "floor" if 0 in candidates else candidates[0]
