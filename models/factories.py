"""Backbones that are no table: calling the factory that their spec names, and freezing what it returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from featuretap.backbones.inputs import ImageModel
from featuretap.specs import BackboneSpec
from featuretap.specs.options import Freezing
from featuretap.support.errors import PluginError
from featuretap.support.import_strings import call_reference

# The first is the base class of all batch and instance norms.
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
PROBES = (224, 256, 384, 192, 448, 512, 518, 288, 320, 336, 240, 128, 96, 64)
"""Heights and widths of images to try, to find the parameters of a map; some networks take one size only."""


def backbone_module(spec: BackboneSpec, *, pretrained: str | None = None) -> nn.Module:
    """Return what the factory of a spec builds.

    Args:
        spec: of a backbone that is no table, options applied.
        pretrained: which of its own weights the factory is to fetch; None for random ones.

    Raises:
        PluginError: the factory failed, or returned something else than a module.
    """
    own = {} if pretrained is None else {"pretrained": pretrained}
    backbone = call_reference(
        f"backbone {spec.name!r}", spec.factory, spec, taps=tuple(spec.taps), **spec.options, **own
    )
    if not isinstance(backbone, nn.Module):
        raise PluginError(
            f"backbone {spec.name!r} cannot be built: {spec.factory!r} returned {backbone!r}, which is no module"
        )
    backbone.taps = dict(spec.taps)  # type: ignore[assignment]
    return backbone


def freeze(backbone: nn.Module, spec: BackboneSpec, freezing: Freezing) -> None:
    """Freeze all that a level rests on, and all norms if requested.

    Afterwards the class of the module is a subclass of its own class, whose `train` keeps the frozen modules in
    evaluation.

    Raises:
        PluginError: the backbone cannot be run on the meta device, so that nobody knows what the level rests on.
    """
    parameters = _parameters_below(spec, freezing.through) if freezing.through else frozenset()
    frozen = tuple(_frozen_modules(backbone, parameters, norms=freezing.norms))
    for name, parameter in backbone.named_parameters():
        if name in parameters:
            parameter.requires_grad_(False)
    for path in frozen:
        backbone.get_submodule(path).requires_grad_(False)
    # A backbone that was frozen completely is in evaluation, whatever it was set to.
    training: Any = getattr(backbone, "set_to_train", backbone.training)
    if not isinstance(backbone, _Adopted):
        object.__setattr__(backbone, "__class__", _adopted(type(backbone)))
    backbone.frozen_modules = frozen  # type: ignore[assignment]
    backbone.train(training)


def _frozen_modules(backbone: nn.Module, parameters: frozenset[str], *, norms: bool) -> Iterator[str]:
    """Yield the paths of the norms if requested, and of modules all of whose parameters are frozen."""
    for path, module in backbone.named_modules():
        own = [f"{path}.{name}" if path else name for name, _ in module.named_parameters()]
        if (norms and isinstance(module, NORMS)) or (own and parameters.issuperset(own)):
            yield path


def _parameters_below(spec: BackboneSpec, level: str) -> frozenset[str]:
    """Return the names of the parameters that a map is computed from, found by autograd on the meta device."""
    with torch.device("meta"), torch.enable_grad():
        probe = backbone_module(spec.with_taps((level,)))
        leaves = _leaves(_run(probe, spec)[level])
    return frozenset(name for name, parameter in probe.named_parameters() if id(parameter) in leaves)


def _run(probe: nn.Module, spec: BackboneSpec) -> Any:
    """Return the maps of an image of the first size that a network takes."""
    for size in PROBES:
        try:
            return probe(torch.empty(1, spec.in_channels, size, size))
        except Exception as error:
            refused = " ".join(str(error).split())
    raise PluginError(
        f"{spec.name!r} cannot be frozen by level: it takes images of no usual size, so that nobody knows what the "
        f"level rests on ({refused})"
    )


def _leaves(tensor: Tensor) -> set[int]:
    """Return the identities of the parameters that a tensor was computed from."""
    waiting, seen, leaves = [tensor.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaves.add(id(getattr(node, "variable", None)))
        waiting.extend(earlier for earlier, _ in node.next_functions)
    return leaves


def adopt(module: nn.Module) -> None:
    """Let a plugin's module report what is wrong with its images, as `ImageModel` does.

    Its class becomes a subclass of its own class. Classes that are copied or pickled in their own way, such as those of
    torch.fx and TorchScript, are left as they are.
    """
    kind = type(module)
    usual = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    if usual and not hasattr(kind, "__deepcopy__") and not isinstance(module, ImageModel):
        object.__setattr__(module, "__class__", _adopted(kind))


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module had before `adopt`."""
    return type(module).__bases__[1] if isinstance(module, _Adopted) else type(module)


class _Adopted(ImageModel):
    """A mixin for the class of a plugin's module; `train` keeps `frozen_modules` in evaluation."""

    # No annotation: torch.jit.script would read it, as a string.
    frozen_modules = ()

    def train(self, mode: bool = True) -> Self:
        frozen: Any = self.frozen_modules
        self.set_to_train = mode
        super().train(mode and "" not in frozen)
        for path in filter(None, frozen):
            self.get_submodule(path).eval()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made while running, and found again by the class that it was made of.
        state = self.__getstate__()  # type: ignore[no-untyped-call]
        return _empty, (own_class(self),), state


def _adopted(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_Adopted, kind), {"__module__": kind.__module__})


def _empty(kind: type[nn.Module]) -> nn.Module:
    adopted = _adopted(kind)
    module: nn.Module = adopted.__new__(adopted)
    return module
