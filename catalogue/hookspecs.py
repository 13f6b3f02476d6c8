"""The plugin contract: what a distribution with an entry point in the group `featuretap` may answer.

Hooks return data, so that answering one needs no torch. A module that implements some of them is a plugin:

    from featuretap.registry.hookspecs import hookimpl

    @hookimpl
    def featuretap_backbones():
        return [BackboneSpec("tinynet", stages=...)]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pluggy

from featuretap.catalogue.addresses import FORMS, HUB, LOCAL, is_file_address
from featuretap.specs import BackboneSpec, HeadSpec, RuntimeSpec
from featuretap.specs.preprocessing import Preprocessing
from featuretap.specs.validation import BOOLEAN, STRING, Check
from featuretap.support.errors import CatalogueError

__all__ = ["GROUP", "HUB", "WeightsEntry", "hookimpl", "hookspec"]

DIGEST = re.compile(r"[0-9a-f]{8,64}")

FIELDS: dict[str, Check] = {
    **dict.fromkeys(("layout", "head"), ("a name", lambda value: isinstance(value, str) and value != "")),
    **dict.fromkeys(("classes", "license"), STRING),
    "preprocessing": ("a Preprocessing", lambda value: isinstance(value, Preprocessing)),
    "urls": ("a tuple of addresses", lambda value: isinstance(value, tuple)),
    "default": BOOLEAN,
    "megabytes": ("a number", lambda value: type(value) in (int, float)),
    "accuracy": ("a number or None", lambda value: value is None or type(value) in (int, float)),
    "options": (
        "a mapping from the names of options to their values",
        lambda value: isinstance(value, Mapping) and all(isinstance(name, str) for name in value),
    ),
}

GROUP = "featuretap"
"""The entry-point group that plugins register in, and the name of the pluggy project."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@dataclass(frozen=True)
class WeightsEntry:
    """Published weights: whose they are, where they lie, how to know them, and how to use them.

    Args:
        name: the backbone's name, a dot, and the tag: "mobilenet_v2.imagenet1k_v1".
        url: the address of the file: "https://…", "hf://owner/repository/file" on the Hugging Face hub
            ("hf://owner/repository@revision/file"), "pkg://distribution/path" in an installed distribution, whose path
            is as pip lists it (package/folder/file), or "file://…".
        sha256: its SHA-256 in lower-case hexadecimal, or as many leading digits, eight or more, as are published. May
            be empty on the hub, which states the digest when the file is downloaded.
        layout: how its tensors are named, such as "featuretap", "torchvision" or "timm".
        norm_eps: epsilon of its batch norms.
        classes: the label set of its classifier: "imagenet1k".
        preprocessing: how images were prepared in training.
        default: whether `pretrained=True` means this one.
        megabytes: size of the file in millions of bytes, 0 where it is not known.
        license: under which the publisher gives it away, as an SPDX identifier.
        accuracy: in percent, as the publisher states it: top-1 on ImageNet-1k of classifiers, box AP of detectors, mean
            IoU of segmenters; None where it does not.
        head: name of the head that they were trained with.
        options: options of backbone and head (and `taps` and `num_classes`) that they were trained with;
            `pretrained=tag` brings them.
        urls: other addresses of the same file. Those on this machine (`pkg://`, `file://`) are tried first, and the
            rest in order, `url` before them.

    Raises:
        CatalogueError: a name without a tag, an address or a digest that cannot be one.
    """

    name: str
    url: str
    sha256: str
    layout: str
    norm_eps: float
    classes: str = ""
    preprocessing: Preprocessing = Preprocessing()
    default: bool = False
    megabytes: float = 0.0
    license: str = ""
    accuracy: float | None = None
    head: str = "classification"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    urls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise CatalogueError(f"weights {self.name!r}: {problem}")

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses of the file in the order in which they are tried."""
        return tuple(sorted((self.url, *self.urls), key=lambda address: not address.startswith(LOCAL)))

    @property
    def backbone(self) -> str:
        """Name of the backbone that they fit."""
        return self.name.rpartition(".")[0]

    @property
    def tag(self) -> str:
        """What `pretrained=` calls them."""
        return self.name.rpartition(".")[2]


def _problem(entry: WeightsEntry) -> str:
    if not isinstance(entry.name, str) or not all(entry.name.rpartition(".")):
        return "the name should be 'backbone.tag'"
    addresses = (entry.url, *entry.urls) if isinstance(entry.urls, tuple) else (entry.url,)
    for address in addresses:
        if not is_file_address(address):
            return f"url {address!r} is not an address of a file; write {FORMS}"
    stated_later = entry.sha256 == "" and all(address.startswith(HUB) for address in addresses)
    if not stated_later and not (isinstance(entry.sha256, str) and DIGEST.fullmatch(entry.sha256)):
        return f"sha256 should be 8 to 64 lower-case hexadecimal digits, got {entry.sha256!r}"
    for key, (allowed, accepts) in FIELDS.items():
        if not accepts(getattr(entry, key)):
            return f"{key} should be {allowed}, got {getattr(entry, key)!r}"
    if type(entry.norm_eps) not in (int, float) or not 0 < entry.norm_eps < 1:
        return f"norm_eps should be a small positive number, got {entry.norm_eps!r}"
    if entry.default and entry.head != "classification":
        return f"only a classifier's can be the default; ask for those of head {entry.head!r} by their tag"
    return ""


@hookspec
def featuretap_backbones() -> Iterable[BackboneSpec]:  # type: ignore[empty-body]
    """Return the backbones that the plugin adds."""


@hookspec
def featuretap_heads() -> Iterable[HeadSpec]:  # type: ignore[empty-body]
    """Return the heads that the plugin adds."""


@hookspec
def featuretap_weights() -> Iterable[WeightsEntry]:  # type: ignore[empty-body]
    """Return entries of published weights, for the plugin's backbones or anybody's."""


@hookspec
def featuretap_runtimes() -> Iterable[RuntimeSpec]:  # type: ignore[empty-body]
    """Return the runtimes that the plugin adds."""


@hookspec(firstresult=True)
def featuretap_find_backbone(name: str) -> BackboneSpec | None:
    """Return the backbone of a name in an open namespace, "timm/resnet18", and None for names that are not in it.

    Asked only for names with a slash that nobody has declared; what it answers is kept. May import what it needs.

    Raises:
        UnknownBackboneError: the namespace has no such name; say which is the nearest.
    """


@hookspec(firstresult=True)
def featuretap_match_backbones(pattern: str) -> Iterable[str] | None:
    """Return the names in an open namespace that match a shell pattern, "timm/resnet*", and None for other patterns.

    A pattern such as "*/resnet50" asks every namespace for a suggestion, which should not import its library.

    Asked only for patterns with a slash, so that listing what is declared stays fast. May import what it needs.
    """
