"""Backbones that are built by a factory: call the factory, and freeze parts of the module that it returns."""

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

# _NormBase is the base class of all batch and instance norms.
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
PROBES = (224, 256, 384, 192, 448, 512, 518, 288, 320, 336, 240, 128, 96, 64)
"""Image sizes to try when running a network. Some networks accept one size only."""


def backbone_module(spec: BackboneSpec, *, pretrained: str | None = None) -> nn.Module:
    """Build a backbone with the factory that its spec names.

    Args:
        spec: spec of the backbone, with its options applied.
        pretrained: tag of weights that the factory downloads; None for random weights.

    Returns:
        The module, with `.taps`.

    Raises:
        PluginError: the factory failed, or did not return a module.
    """
    own = {} if pretrained is None else {"pretrained": pretrained}
    backbone = call_reference(
        f"backbone {spec.name!r}", spec.factory, spec, taps=tuple(spec.taps), **spec.options, **own
    )
    if not isinstance(backbone, nn.Module):
        raise PluginError(
            f"backbone {spec.name!r} cannot be built: {spec.factory!r} returned {backbone!r}, which is not a module"
        )
    backbone.taps = dict(spec.taps)  # type: ignore[assignment]
    return backbone


def freeze(backbone: nn.Module, spec: BackboneSpec, freezing: Freezing) -> None:
    """Freeze all parameters up to a level, and all norms if requested.

    The class of the module becomes a subclass of its class whose `train` keeps frozen modules in evaluation mode.

    Args:
        backbone: a module that a factory built, changed in place.
        spec: spec of the backbone.
        freezing: the level and whether norms are frozen.

    Raises:
        PluginError: the backbone does not run on the meta device, so the parameters of the level cannot be determined.
    """
    parameters = _parameters_below(spec, freezing.through) if freezing.through else frozenset()
    frozen = tuple(_frozen_modules(backbone, parameters, norms=freezing.norms))
    for name, parameter in backbone.named_parameters():
        if name in parameters:
            parameter.requires_grad_(False)
    for path in frozen:
        backbone.get_submodule(path).requires_grad_(False)
    # A completely frozen backbone is in evaluation mode, whatever mode was set.
    training: Any = getattr(backbone, "set_to_train", backbone.training)
    if not isinstance(backbone, _Adopted):
        object.__setattr__(backbone, "__class__", _adopted(type(backbone)))
    backbone.frozen_modules = frozen  # type: ignore[assignment]
    backbone.train(training)


def _frozen_modules(backbone: nn.Module, parameters: frozenset[str], *, norms: bool) -> Iterator[str]:
    """Yield the paths of modules whose parameters are all frozen, and of norms if requested."""
    for path, module in backbone.named_modules():
        own = [f"{path}.{name}" if path else name for name, _ in module.named_parameters()]
        if (norms and isinstance(module, NORMS)) or (own and parameters.issuperset(own)):
            yield path


def _parameters_below(spec: BackboneSpec, level: str) -> frozenset[str]:
    """Return the names of the parameters that a map depends on, found by autograd on the meta device."""
    with torch.device("meta"), torch.enable_grad():
        probe = backbone_module(spec.with_taps((level,)))
        leaves = _leaves(_run(probe, spec)[level])
    return frozenset(name for name, parameter in probe.named_parameters() if id(parameter) in leaves)


def _run(probe: nn.Module, spec: BackboneSpec) -> Any:
    """Return the maps for an image of the first size in `PROBES` that the network accepts."""
    for size in PROBES:
        try:
            return probe(torch.empty(1, spec.in_channels, size, size))
        except Exception as error:
            refused = " ".join(str(error).split())
    raise PluginError(
        f"{spec.name!r} cannot be frozen by level: it accepts none of the usual image sizes, so the layers of the "
        f"level cannot be determined ({refused})"
    )


def _leaves(tensor: Tensor) -> set[int]:
    """Return the ids of the parameters that a tensor was computed from."""
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
    """Make a plugin's `module` report problems with its images in the same way as `ImageModel`.

    Its class becomes a subclass of its class. Classes with their own way of copying or pickling, such as those of
    torch.fx and TorchScript, are not changed.
    """
    kind = type(module)
    usual = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    if usual and not hasattr(kind, "__deepcopy__") and not isinstance(module, ImageModel):
        object.__setattr__(module, "__class__", _adopted(kind))


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a `module` before `adopt`."""
    return type(module).__bases__[1] if isinstance(module, _Adopted) else type(module)


class _Adopted(ImageModel):
    """A mixin for the classes of plugins' modules. `train` keeps `frozen_modules` in evaluation mode."""

    # Not annotated, because torch.jit.script cannot evaluate the annotation, which is a string.
    frozen_modules = ()

    def train(self, mode: bool = True) -> Self:
        frozen: Any = self.frozen_modules
        self.set_to_train = mode
        super().train(mode and "" not in frozen)
        for path in filter(None, frozen):
            self.get_submodule(path).eval()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is created at run time, so it is pickled by its base class.
        state = self.__getstate__()  # type: ignore[no-untyped-call]
        return _empty, (own_class(self),), state


def _adopted(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_Adopted, kind), {"__module__": kind.__module__})


def _empty(kind: type[nn.Module]) -> nn.Module:
    adopted = _adopted(kind)
    module: nn.Module = adopted.__new__(adopted)
    return module
