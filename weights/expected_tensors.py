"""Names and shapes of the tensors of a spec, in the native layout."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from featuretap.specs import BackboneSpec, Block, Counted, ModelSpec

Shapes = Mapping[str, tuple[int, ...]]

HEAD = "head."
"""Prefix of the head's tensors. In files, the backbone's tensors have no prefix."""

COUNTER = "num_batches_tracked"
"""Number of batches in the statistics of a norm. It does not affect inference and is missing in many files."""

STATISTICS = ("weight", "bias", "running_mean", "running_var")


def backbone_tensors(blocks: Iterable[Block]) -> dict[str, tuple[int, ...]]:
    """Return name → shape of every tensor of `blocks` with batch norms.

    Layers of plugins that do not declare their tensors are left out.
    """
    tensors: dict[str, tuple[int, ...]] = {}
    for block in blocks:
        for path, layer in block.layer_paths():
            tensors |= {f"{path}.{name}": shape for name, shape in getattr(layer, "tensors", {}).items()}
            if layer.norm_channels:
                tensors |= {f"{path}.norm.{kind}": (layer.norm_channels,) for kind in STATISTICS}
                tensors[f"{path}.norm.{COUNTER}"] = ()
    return tensors


def classifier_tensors(layers: Iterable[Counted]) -> dict[str, tuple[int, ...]]:
    """Return name → shape of every tensor of a classification head with these `layers`."""
    return {
        f"{HEAD}{layer.name}.{name}": shape for layer in layers for name, shape in getattr(layer, "tensors", {}).items()
    }


def head_tensors(spec: BackboneSpec | ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return name → shape of every tensor of the head of a `spec`. A name that ends in a dot is a layer with unknown
    tensors.
    """
    return {f"{HEAD}{name}": shape for name, shape in spec.head_tensors.items()} if isinstance(spec, ModelSpec) else {}


def without_counters(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the `shapes` of weights and statistics only."""
    return {name: shape for name, shape in shapes.items() if not name.endswith(COUNTER)}


def layer_paths(blocks: Iterable[Block]) -> frozenset[str]:
    """Return the paths of all layers of `blocks`."""
    return frozenset(path for block in blocks for path, _ in block.layer_paths())


def is_below(name: str, paths: Collection[str]) -> bool:
    """Return whether a tensor `name` is in one of the modules at `paths`."""
    while "." in name:
        name = name.rpartition(".")[0]
        if name in paths:
            return True
    return False


def first_mismatch(shapes: Shapes, expected: Shapes) -> str:
    """Return a message about the first tensor of `shapes` that differs from `expected`, or an empty string."""
    for name, shape in expected.items():
        if name not in shapes:
            if not name.endswith(COUNTER):
                return f"{name} is missing"
        elif shapes[name] != shape:
            return f"{name} is {shapes[name]}, not {shape}"
    return ""


def find_difference(shapes: Shapes, backbone: BackboneSpec, head: Shapes) -> str:
    """Return a message about how tensors differ from the tensors of a table, with any single type of norm, and of its
    head.

    Args:
        shapes: name → shape of the tensors.
        backbone: spec of the backbone.
        head: name → shape of the head's tensors, as `head_tensors` returns them.

    Returns:
        The message, or an empty string.
    """
    if not backbone.stages:
        return ""
    layers = [pair for block in backbone.blocks for pair in block.layer_paths()]
    norms = [f"{path}.norm." for path, layer in layers if layer.norm_channels]
    kinds = {norm: {name.removeprefix(norm) for name in shapes if name.startswith(norm)} for norm in norms}
    mixed = next((norm for norm in norms if kinds[norm] != kinds[norms[0]]), "")
    # Weights of other norms can have any shape.
    is_batch_norm = bool(norms) and "running_var" in kinds[norms[0]]
    expected = {
        name: shape
        for name, shape in backbone_tensors(backbone.blocks).items()
        if ".norm." not in name or (is_batch_norm and name in shapes)
    }
    expected |= {name: shape for name, shape in head.items() if not name.endswith(".")}
    undeclared = [f"{path}." for path, layer in layers if not hasattr(layer, "tensors")]
    known = (*norms, *undeclared, *(name for name in head if name.endswith(".")))
    extra = sorted(name for name in shapes if name not in expected and not name.startswith(known))
    problem = first_mismatch(shapes, expected)
    if problem or not (mixed or extra):
        return problem
    if mixed:
        return f"{mixed.rstrip('.')} has another type than {norms[0].rstrip('.')}"
    return f"{extra[0]} was added"
