"""The plugin contract: what a distribution with an entry point in the group `featuretap` may answer.

Hooks return data, so that answering one needs no torch. A module that implements some of them is a plugin:

    from featuretap.registry.hookspecs import hookimpl

    @hookimpl
    def featuretap_backbones():
        return [BackboneSpec("tinynet", stages=...)]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pluggy

from featuretap.registry.preprocessing import Preprocessing
from featuretap.registry.specs import BackboneSpec, HeadSpec, RuntimeSpec

__all__ = ["GROUP", "WeightsEntry", "hookimpl", "hookspec"]

GROUP = "featuretap"
"""The entry-point group that plugins register in, and the name of the pluggy project."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@dataclass(frozen=True)
class WeightsEntry:
    """Published weights: whose they are, where they lie, how to know them, and how to use them.

    Args:
        name: the backbone's name, a dot, and the tag: "mobilenet_v2.imagenet1k_v1".
        url: where the file can be downloaded.
        sha256: its SHA-256 in lower-case hexadecimal, or as many leading digits, eight or more, as are published.
        layout: how its tensors are named: "torchvision".
        norm_eps: epsilon of its batch norms.
        classes: the label set of its classifier: "imagenet1k".
        preprocessing: how images were prepared in training.
        default: whether `pretrained=True` means this one.
    """

    name: str
    url: str
    sha256: str
    layout: str
    norm_eps: float
    classes: str = ""
    preprocessing: Preprocessing = Preprocessing()
    default: bool = False

    @property
    def backbone(self) -> str:
        """Name of the backbone that they fit."""
        return self.name.rpartition(".")[0]

    @property
    def tag(self) -> str:
        """What `pretrained=` calls them."""
        return self.name.rpartition(".")[2]


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
