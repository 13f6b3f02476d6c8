"""The plugin contract: hooks that a distribution with an entry point in the group `featuretap` may implement.

Hooks return data, so that calling one imports no torch. A module that implements at least one hook is a plugin:

    from featuretap.registry.hookspecs import hookimpl
    from featuretap.registry.specs import BackboneSpec

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
        "a mapping from option name to value",
        lambda value: isinstance(value, Mapping) and all(isinstance(name, str) for name in value),
    ),
}

GROUP = "featuretap"
"""Entry-point group of plugins, and name of the pluggy project."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@dataclass(frozen=True)
class WeightsEntry:
    """Published weights: where to download them, how to verify them, and how to use them.

    Args:
        name: name of the backbone, a dot, and the tag: "mobilenet_v2.imagenet1k_v1".
        url: address of the file: "https://…"; "hf://owner/repository/file" on the Hugging Face Hub, optionally with a
            revision ("hf://owner/repository@revision/file"); "pkg://distribution/path" in an installed distribution,
            with the path as pip lists it (package/folder/file); or "file://…".
        sha256: SHA-256 of the file in lower-case hexadecimal, or its first digits, at least eight, if the publisher
            states no more. May be empty for the Hugging Face Hub, which sends the digest with the download.
        layout: layout of the tensor names, such as "featuretap", "torchvision" or "timm".
        norm_eps: batch-norm epsilon.
        classes: label set of the classifier, such as "imagenet1k".
        preprocessing: preprocessing that the weights were trained with.
        default: whether `pretrained=True` selects these weights.
        megabytes: size of the file in millions of bytes, or 0 if unknown.
        license: license of the weights, as an SPDX identifier.
        accuracy: accuracy in percent as stated by the publisher: top-1 on ImageNet-1k for classifiers, box AP for
            detectors, mean IoU for segmenters; None if not stated.
        head: name of the head that the weights were trained with.
        options: options of backbone and head (and `taps` and `num_classes`) that the weights were trained with.
            `pretrained=tag` sets them.
        urls: other addresses of the same file. Local addresses (`pkg://`, `file://`) are tried first, then `url`, then
            the others in order.

    Raises:
        CatalogueError: the name has no tag, or another field is invalid.

    Examples:
        >>> from featuretap.registry.hookspecs import WeightsEntry
        >>> entry = WeightsEntry(
        ...     "mobilenet_v2.imagenet1k_v1",
        ...     url="https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
        ...     sha256="b0353104",
        ...     layout="torchvision",
        ...     norm_eps=1e-5,
        ... )
        >>> entry.backbone, entry.tag
        ('mobilenet_v2', 'imagenet1k_v1')
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
        """All addresses of the file, in the order in which they are tried."""
        return tuple(sorted((self.url, *self.urls), key=lambda address: not address.startswith(LOCAL)))

    @property
    def backbone(self) -> str:
        """Name of the backbone that the weights fit."""
        return self.name.rpartition(".")[0]

    @property
    def tag(self) -> str:
        """Tag of the weights, for `pretrained=tag`."""
        return self.name.rpartition(".")[2]


def _problem(entry: WeightsEntry) -> str:
    if not isinstance(entry.name, str) or not all(entry.name.rpartition(".")):
        return "the name must be 'backbone.tag'"
    addresses = (entry.url, *entry.urls) if isinstance(entry.urls, tuple) else (entry.url,)
    for address in addresses:
        if not is_file_address(address):
            return f"url {address!r} is not the address of a file; write {FORMS}"
    stated_later = entry.sha256 == "" and all(address.startswith(HUB) for address in addresses)
    if not stated_later and not (isinstance(entry.sha256, str) and DIGEST.fullmatch(entry.sha256)):
        return f"sha256 must be 8 to 64 lower-case hexadecimal digits; got {entry.sha256!r}"
    for key, (allowed, accepts) in FIELDS.items():
        if not accepts(getattr(entry, key)):
            return f"{key} must be {allowed}; got {getattr(entry, key)!r}"
    if type(entry.norm_eps) not in (int, float) or not 0 < entry.norm_eps < 1:
        return f"norm_eps must be a number between 0 and 1; got {entry.norm_eps!r}"
    if entry.default and entry.head != "classification":
        return f"only classifier weights can be the default; request weights with head {entry.head!r} by their tag"
    return ""


@hookspec
def featuretap_backbones() -> Iterable[BackboneSpec]:  # type: ignore[empty-body]
    """Return the backbones that the plugin provides.

    Returns:
        The specs of the backbones.

    Examples:
        >>> from featuretap.registry.hookspecs import hookimpl
        >>> from featuretap.registry.specs import HS, RE, BackboneSpec, Bneck, Conv
        >>> TINYNET = BackboneSpec("tinynet", stages=((Conv(3, 16, HS),), (Bneck(3, 48, 24, RE),)))
        >>> @hookimpl
        ... def featuretap_backbones():
        ...     return [TINYNET]
    """


@hookspec
def featuretap_heads() -> Iterable[HeadSpec]:  # type: ignore[empty-body]
    """Return the heads that the plugin provides.

    Returns:
        The specs of the heads.

    Examples:
        >>> from featuretap.registry.hookspecs import hookimpl
        >>> from featuretap.registry.specs import HeadSpec
        >>> @hookimpl
        ... def featuretap_heads():
        ...     return [HeadSpec("edges", reads=("C2", "C3"), factory="featuretap_edges.modules:edges")]
    """


@hookspec
def featuretap_weights() -> Iterable[WeightsEntry]:  # type: ignore[empty-body]
    """Return entries of published weights, for backbones of this or another plugin.

    Returns:
        The entries.

    Examples:
        >>> from featuretap.registry.hookspecs import WeightsEntry, hookimpl
        >>> @hookimpl
        ... def featuretap_weights():
        ...     url = "hf://owner/repository/tinynet.safetensors"
        ...     return [WeightsEntry("tinynet.mine", url, sha256="", layout="featuretap", norm_eps=1e-5)]
    """


@hookspec
def featuretap_runtimes() -> Iterable[RuntimeSpec]:  # type: ignore[empty-body]
    """Return the runtimes that the plugin provides.

    Returns:
        The specs of the runtimes.

    Examples:
        >>> from featuretap.registry.hookspecs import hookimpl
        >>> from featuretap.registry.specs import RuntimeSpec
        >>> @hookimpl
        ... def featuretap_runtimes():
        ...     return [RuntimeSpec("tensorrt", factory="featuretap_tensorrt.runtime:compile", modules=("tensorrt",))]
    """


@hookspec(firstresult=True)
def featuretap_find_backbone(name: str) -> BackboneSpec | None:
    """Return the backbone of a name in a namespace, or None for a name outside it.

    Names in a namespace, such as "timm/resnet18", are resolved on demand, and listed only for a pattern with a slash.
    The hook is called only for names with a slash that no plugin declares, and its result is cached. It may import any
    package.

    Args:
        name: the requested name, with its namespace.

    Returns:
        The spec of the backbone, or None.

    Raises:
        UnknownBackboneError: the namespace has no such name. The message should suggest the nearest name.

    Examples:
        >>> from featuretap.registry.hookspecs import hookimpl
        >>> from featuretap.registry.specs import HS, BackboneSpec, Conv
        >>> @hookimpl
        ... def featuretap_find_backbone(name):
        ...     namespace, _, model = name.partition("/")
        ...     if namespace != "widenet" or not model.isdigit():
        ...         return None
        ...     return BackboneSpec(name, stages=((Conv(3, int(model), HS),),))
        >>> featuretap_find_backbone("widenet/64").taps
        {'C1': Tap(channels=64, stride=2, rounding='ceil')}
    """


@hookspec(firstresult=True)
def featuretap_match_backbones(pattern: str) -> Iterable[str] | None:
    """Return the names in a namespace that match a shell pattern, or None for a pattern outside it.

    The hook is called only for patterns with a slash, so that listing declared backbones stays fast. It may import any
    package. A pattern such as `"*/resnet50"` is a request for suggestions and should not import the namespace's
    library.

    Args:
        pattern: a shell pattern, such as `"timm/resnet*"`.

    Returns:
        The matching names, or None.

    Examples:
        >>> from fnmatch import filter
        >>> from featuretap.registry.hookspecs import hookimpl
        >>> @hookimpl
        ... def featuretap_match_backbones(pattern):
        ...     return filter(["widenet/32", "widenet/64"], pattern)
        >>> featuretap_match_backbones("widenet/6*")
        ['widenet/64']
    """
