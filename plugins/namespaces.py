"""Code shared by the namespaces `timm/` and `torchvision/`: hooks, names, options, map sizes and download errors."""

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
"""Prefix of patterns that match in every namespace."""

REGISTERED = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
"""Matches functions that timm or torchvision registers as models."""

DIVISIBLE = 256
"""Image size that is divisible by all common strides."""
PROBES = (
    DIVISIBLE + 1,
    DIVISIBLE + 31,
    *sorted(range(DIVISIBLE + 2, DIVISIBLE + 31), key=lambda size: -(size & -size)),
)
"""Image sizes to try. A map that rounds up grows at the first size; a map that rounds down does not even grow at the
second. The others bisect the remaining range."""


def make_hooks(prefix: str, module: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Create the two hooks of a namespace, which import its module on first use.

    Args:
        prefix: prefix of the names: the library and a slash.
        module: import path of the module with `find` and `match`.

    Returns:
        The hooks `featuretap_find_backbone` and `featuretap_match_backbones`.
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
    """Return the names of the models that a library registers, or nothing if it is not installed.

    The names are read from the library's source, since importing it takes seconds, which is too long for a suggestion
    in an error message.

    Args:
        library: "timm" or "torchvision".

    Returns:
        The names.
    """
    found = find_spec(library)
    folders = (found and found.submodule_search_locations) or []
    files = [file for folder in folders for file in Path(folder, "models").glob("*.py")]
    return {name for file in files for name in REGISTERED.findall(file.read_text(encoding="utf-8"))}


def match_names(prefix: str, networks: Iterable[str], pattern: str) -> list[str]:
    """Return the prefixed names of the networks that match a shell pattern."""
    return [name for name in (f"{prefix}{network}" for network in networks) if fnmatchcase(name, pattern)]


def unknown_network(problem: str, prefix: str, network: str, known: Iterable[str]) -> UnknownBackboneError:
    """Return the error for an unknown name, with the closest known one.

    Args:
        problem: start of the message, such as "timm has no model".
        prefix: prefix of the namespace.
        network: the unknown name.
        known: names of the library's networks.

    Returns:
        The error.
    """
    names = {name: f"{prefix}{name}" for name in known}
    hint = did_you_mean(network, names, names) or f"; list all with featuretap list '{prefix}*'"
    return UnknownBackboneError(f"{problem} {network!r}{hint}")


def network_name(spec: BackboneSpec, prefix: str) -> str:
    """Return the library's name of a network. A variant in a user's catalogue has a different name."""
    return (spec.variant_of or spec.name).removeprefix(prefix)


def changed_options(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options to pass to the library: those that are not None and differ from the default."""
    return {name: value for name, value in options.items() if value is not None and value != defaults.get(name)}


@contextmanager
def explain_download(weights: str, cached: bool, problem: str, by_hand: str) -> Iterator[None]:
    """Explain errors of a library that loads its own weights, and how to put the file into its cache by hand.

    Args:
        weights: name of the weights.
        cached: whether the file is in the cache.
        problem: start of the message.
        by_hand: how to download the file by hand.

    Yields:
        None: inside the context.

    Raises:
        WeightsError: downloads are disabled and the file is not in the cache, or the library failed.
    """
    from featuretap.weights.downloads import offline

    if not cached and offline():
        raise WeightsError(f"{weights!r} is not on this machine, and FEATURETAP_OFFLINE forbids downloads; {by_hand}")
    try:
        yield
    except Exception as error:
        # The libraries do not wrap the errors of the libraries they use.
        raise WeightsError(f"{problem}: {one_line(str(error)) or type(error).__name__}; {by_hand}") from error


def find_roundings(
    strides: Sequence[int], measure: Callable[[int], Sequence[int]], usual_size: int = DIVISIBLE
) -> list[Rounding | None]:
    """Determine how the sizes of maps are rounded, by running the network on images of different sizes.

    Args:
        strides: strides of the maps.
        measure: runs the network: image size → heights of the maps, empty if the network rejects the size.
        usual_size: image size that the network was designed for.

    Returns:
        The rounding of each map, as in `Tap`; None if a map's size is not the image size divided by its stride.
    """
    measure = cache(measure)
    accepted = next((size for size in (DIVISIBLE, usual_size) if measure(size)), None)
    if accepted is None:
        return ["ceil"] * len(strides)
    return [_find_rounding(index, stride, accepted, measure) for index, stride in enumerate(strides)]


def _find_rounding(index: int, stride: int, accepted: int, measure: Callable[[int], Sequence[int]]) -> Rounding | None:
    """Return the rounding of one map, whose height for an image of `size` pixels is `(size + added) // stride`.

    Each probe excludes values of `added`. If several remain, because the network accepts only one size, "ceil" is
    preferred. So it is if none remains: MobileViT, for example, resizes its maps to an even number of pixels.
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
