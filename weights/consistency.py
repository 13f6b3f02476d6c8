"""Whether tensors are still those of the model that a description describes, by their shapes. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featuretap.catalogue.request import backbone_of
from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.description import Description, options_in_words
from featuretap.specs.options import options_of
from featuretap.support.errors import WeightsError
from featuretap.weights.expected_tensors import HEAD, Shapes, backbone_tensors, misfit

if TYPE_CHECKING:
    from featuretap.registry.registry import Registry

__all__ = ["check_unchanged", "difference", "head_shapes", "model_spec"]


def check_unchanged(shapes: Shapes, description: Description, spec: BackboneSpec | ModelSpec) -> None:
    """Refuse a model whose tensors are not those that it was built with: its file would not load.

    Raises:
        WeightsError: a tensor is missing, was added, or has another shape.
    """
    problem = difference(shapes, backbone_of(spec), head_shapes(spec))
    if problem:
        words = options_in_words(description.name, description.options)
        raise WeightsError(
            f"cannot save {words}, which was changed after it was built: {problem}; build it as it is now (such as "
            "with num_classes=), and copy its state into that"
        )


def model_spec(registry: Registry, description: Description, backbone: BackboneSpec) -> BackboneSpec | ModelSpec:
    """Return the spec of a model that a description describes, on the backbone as it was built."""
    if description.head is None:
        return backbone
    built = options_of(backbone)
    own = {name: value for name, value in description.options.items() if name not in built}
    # The backbone is as it was built, whatever the head would set of it.
    kept = {name: built[name] for name in registry.head(description.head).backbone_options if name in built}
    return registry.spec(
        backbone, head=description.head, num_classes=description.num_classes, taps=description.taps, **own, **kept
    )


def head_shapes(spec: BackboneSpec | ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return name → shape of the tensors of a head; a name that ends in a dot is of a layer that may have any."""
    return {f"{HEAD}{name}": shape for name, shape in spec.head_tensors.items()} if isinstance(spec, ModelSpec) else {}


def difference(found: Shapes, backbone: BackboneSpec, head: Shapes) -> str:
    """Return how tensors differ from those of a backbone's table, with norms of any one kind, and of its head."""
    if not backbone.stages:
        return ""
    paths = [path for block in backbone.blocks for path, layer in block.layer_paths() if layer.norm_channels]
    kinds = [
        {name.removeprefix(f"{path}.norm.") for name in found if name.startswith(f"{path}.norm.")} for path in paths
    ]
    # The weights of other norms than batch norms may have any shape.
    batch = kinds and "running_var" in kinds[0]
    expected = {
        name: shape
        for name, shape in backbone_tensors(backbone.blocks).items()
        if ".norm." not in name or (batch and name in found)
    }
    expected |= {name: shape for name, shape in head.items() if not name.endswith(".")}
    problem = misfit(found, expected)
    if problem:
        return problem
    for path, kind in zip(paths, kinds, strict=True):
        if kind != kinds[0]:
            return f"{path}.norm is of another kind than {paths[0]}.norm"
    known = (*(f"{path}.norm." for path in paths), *_open(backbone), *(name for name in head if name.endswith(".")))
    extra = sorted(name for name in found if name not in expected and not name.startswith(known))
    return f"{extra[0]} is there, which it was not built with" if extra else ""


def _open(backbone: BackboneSpec) -> list[str]:
    """Return the beginnings of the names in layers that do not say which tensors they have."""
    return [
        f"{path}." for block in backbone.blocks for path, layer in block.layer_paths() if not hasattr(layer, "tensors")
    ]
