"""From the names of a file to ours, whatever layout it is in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from featuretap.registry.hookspecs import WeightsEntry
from featuretap.registry.import_strings import load
from featuretap.registry.layout import NATIVE, Layout
from featuretap.registry.specs import BackboneSpec
from featuretap.registry.weights.expectation import HEAD, backbone_tensors, known
from featuretap.registry.weights.reading import Checkpoint, some

__all__ = ["MisfitError", "Translated", "layout_of", "translated"]


CLASSIFIER = {"hidden.weight": 2, "hidden.bias": 1, "logits.weight": 2, "logits.bias": 1}
"""Dimensions of the tensors of the classifiers' layers."""


class MisfitError(Exception):
    """Tensors and a model that do not go together, in words; becomes a `WeightsError` where the model has a name."""


@dataclass(frozen=True)
class Translated:
    """The tensors of a file in our names and shapes.

    Args:
        tensors: our name → tensor.
        theirs: our name → name in the file, of those that differ.
        norm_eps: epsilon of the batch norms by part, as far as it is known.
        source: the file, for messages.
        remark: what to know where the tensors do not fit, if anything.
    """

    tensors: Mapping[str, Tensor]
    theirs: Mapping[str, str]
    norm_eps: Mapping[str, float]
    source: str
    remark: str = ""

    @property
    def has_head(self) -> bool:
        """Whether any tensor belongs to a head."""
        return any(name.startswith(HEAD) for name in self.tensors)


def layout_of(spec: BackboneSpec, name: str) -> Layout:
    """Return how a library names the tensors of a backbone.

    Raises:
        MisfitError: nobody has said how it does.
    """
    if name not in spec.layouts:
        layouts = ", ".join([NATIVE, *spec.layouts])
        raise MisfitError(f"the layout {name!r} is not one that {spec.name!r} is known in; it has {layouts}")
    made: Layout = load(spec.layouts[name])(spec)
    return made


def translated(checkpoint: Checkpoint, spec: BackboneSpec, entry: WeightsEntry | None = None) -> Translated:
    """Rename the tensors of a file for a backbone, its classifier's included.

    Raises:
        MisfitError: the file is in none of the backbone's layouts, or holds tensors that the whole network lacks.
    """
    tensors, source = checkpoint.tensors, str(checkpoint.path)
    record = checkpoint.record
    name = record.layout if record else entry.layout if entry else _guessed(checkpoint, spec)
    if name == NATIVE:
        unknown = sorted(set(tensors) - known(tensors, spec)) if spec.stages else []
        names: Mapping[str, str] = {}
        ours = dict(tensors)
        eps: Mapping[str, float] = {"backbone": spec.norm_eps} if spec.stages else {}
        remark = ""
    else:
        layout = layout_of(spec, name)
        unknown = sorted(set(tensors) - set(layout.names.values()))
        names = layout.names
        ours = {
            key: _flat(tensors[theirs]) if key in layout.pointwise else tensors[theirs]
            for key, theirs in names.items()
            if theirs in tensors
        }
        _check_architecture(checkpoint, name, layout)
        stated = checkpoint.config.norm_eps
        eps, remark = {"backbone": layout.norm_eps if stated is None else stated}, layout.remark
    if unknown:
        raise MisfitError(f"{source} holds {some(unknown)}, which the model lacks")
    if spec.stages:
        _check_ranks(ours, spec, classifier=record is None or record.description.head == "classification")
    if record:
        eps = record.norm_eps
    elif entry:
        eps = {"backbone": entry.norm_eps}
    return Translated(ours, names, eps, source, remark)


def _check_architecture(checkpoint: Checkpoint, name: str, layout: Layout) -> None:
    said = checkpoint.config.architecture
    if name == "timm" and said and layout.architecture and said != layout.architecture:
        raise MisfitError(
            f"the config.json beside {checkpoint.path} says that it is timm's {said!r}, which is another network than "
            f"timm's {layout.architecture!r}"
        )


def _flat(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor


def _check_ranks(tensors: Mapping[str, Tensor], spec: BackboneSpec, *, classifier: bool) -> None:
    """Refuse tensors that no option could make fit: with other dimensions than their layer's, or without elements."""
    ranks = {name: len(shape) for name, shape in backbone_tensors(spec.all_blocks).items()}
    ranks |= {f"{HEAD}{name}": rank for name, rank in CLASSIFIER.items()} if classifier else {}
    for name, tensor in tensors.items():
        if tensor.ndim != ranks.get(name, tensor.ndim) or not tensor.numel():
            raise MisfitError(f"{name} is {tuple(tensor.shape)} in the file, with which nothing fits")


def _guessed(checkpoint: Checkpoint, spec: BackboneSpec) -> str:
    found = set(checkpoint.tensors)
    overlap = {NATIVE: sum(not name.startswith(HEAD) for name in known(found, spec))}
    overlap |= {name: len(found & set(layout_of(spec, name).names.values())) for name in spec.layouts}
    best = max(overlap, key=lambda name: overlap[name])
    if overlap[best]:
        return best
    if not spec.stages:
        return NATIVE
    raise MisfitError(f"{checkpoint.path} is in none of its layouts, which are {', '.join(overlap)}")
