"""Tensor names of timm's and torchvision's networks in their own files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featuretap.specs.layout import Layout
from featuretap.support.errors import SpecError
from featuretap.weights.expected_tensors import HEAD
from featuretap.weights.unwrapping import strip_prefixes

NETWORK = "network."
"""Prefix of the library's modules in featuretap's module."""

LOGITS = f"{HEAD}logits."

IMAGE = (2, 3, 96, 96)
"""Shape of the images for testing which map a classifier reads."""


def pair_names(features: Mapping[str, Tensor], full: Mapping[str, Tensor]) -> dict[str, str]:
    """Map the tensor names of a feature extractor to those of the full network.

    Feature extractors add a prefix to the names of the network. timm's also write "stages_0" for "stages.0".

    Args:
        features: tensors of featuretap's backbone around the library's feature extractor.
        full: tensors of the library's full network.

    Returns:
        featuretap's name → the library's name in a file of its full network.

    Raises:
        SpecError: a tensor has no counterpart in the full network, or more than one.
    """
    candidates: dict[str, list[str]] = defaultdict(list)
    for name in full:
        candidates[_plain(name)].append(name)
    names = {}
    for ours in features:
        inner = ours.removeprefix(NETWORK)
        found = next((candidates[key] for key in map(_plain, _inside(inner)) if key in candidates), [])
        if len(found) != 1 or full[found[0]].shape != features[ours].shape:
            raise SpecError(f"the tensor {inner!r} of the feature extractor has no counterpart in the full network")
        names[ours] = found[0]
    return names


def make_layout(
    features: Mapping[str, Tensor],
    full: Mapping[str, Tensor],
    classifier: str,
    required: Mapping[str, Tensor] | None = None,
    **described: Any,
) -> Layout:
    """Return the layout of a library's files for a backbone of its namespace.

    Args:
        features: tensors of the backbone.
        full: tensors of the library's full network.
        classifier: path of the network's last layer if it equals featuretap's classifier; empty otherwise.
        required: tensors that the library's loader needs to build only the features.
        **described: other fields of the layout.

    Returns:
        The layout.
    """
    names = pair_names(features, full)
    if classifier:
        names |= {f"{LOGITS}{kind}": f"{classifier}.{kind}" for kind in ("weight", "bias")}
    aliases = dict(zip(strip_prefixes({name.removeprefix(NETWORK): name for name in features}), features, strict=True))
    known = set(names.values())
    return Layout(
        names,
        norm_eps=None,
        features_only=not classifier,
        unused=frozenset(full) - known,
        required={name: tensor for name, tensor in (required or {}).items() if name not in known},
        aliases={alias: names[ours] for alias, ours in aliases.items() if alias != names[ours]},
        **described,
    )


def find_unpaired_layer(features: Mapping[str, Tensor], full: Mapping[str, Tensor]) -> str:
    """Return the path of the only layer of the full network outside the backbone, or "" if there is not exactly one."""
    rest = set(full) - set(pair_names(features, full).values())
    path = min(rest, default="").rpartition(".")[0]
    return path if rest == {f"{path}.weight", f"{path}.bias"} else ""


@torch.no_grad()
def reads_pooled_map(network: nn.Module, classifier: str, last: str) -> bool:
    """Return whether a layer's input is the global average of a module's map (N, C, H, W).

    The network is run, since functions between the two, such as an activation, are not modules.

    Args:
        network: the network.
        classifier: path of the layer.
        last: path of the module.

    Returns:
        Whether the input equals the average.
    """
    seen: dict[str, Tensor] = {}
    layer = network.get_submodule(classifier)
    if not isinstance(layer, nn.Linear):
        return False
    handles = [
        layer.register_forward_hook(lambda module, inputs, output: seen.__setitem__("read", inputs[0])),
        network.get_submodule(last).register_forward_hook(
            lambda module, inputs, output: seen.__setitem__("map", output)
        ),
    ]
    try:
        network.eval()(torch.randn(IMAGE))
    except (AssertionError, RuntimeError, ValueError):
        return False
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(seen.get("map"), Tensor) or seen["map"].ndim != 4:
        return False
    pooled = seen["map"].mean((2, 3))
    return seen["read"].shape == pooled.shape and torch.allclose(seen["read"], pooled, rtol=1e-4, atol=1e-6)


def _inside(name: str) -> Iterable[str]:
    """Yield the possible names of a tensor in the full network, without the prefixes of extractors."""
    yield name
    for prefix in ("model.", "body."):
        if name.startswith(prefix):
            yield name.removeprefix(prefix)


def _plain(name: str) -> str:
    return name.replace("_", ".")
