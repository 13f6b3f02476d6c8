"""From the names of a file to ours, whatever layout it is in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from featuretap.catalogue.request import backbone_of
from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.layout import NATIVE, Layout
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.text import first_few
from featuretap.weights.expected_tensors import HEAD, backbone_tensors, known
from featuretap.weights.layouts import CLASSIFICATION, MisfitError, layout_of
from featuretap.weights.reading import Checkpoint

__all__ = ["Translated", "guessed", "translated"]

CLASSIFIER = {"hidden.weight": 2, "hidden.bias": 1, "logits.weight": 2, "logits.bias": 1}
"""Dimensions of the tensors of the classifiers' layers."""


@dataclass(frozen=True)
class Translated:
    """The tensors of a file in our names and shapes.

    Args:
        tensors: our name → tensor.
        theirs: our name → name in the file, of those that differ.
        norm_eps: epsilon of the batch norms by part, as far as it is known.
        source: the file, for messages.
        head: name of the head that its tensors of a head belong to.
        remark: what to know where the tensors do not fit, if anything.
        preprocessing: how the library whose names the file has normalises images inside such a model, if it does.
    """

    tensors: Mapping[str, Tensor]
    theirs: Mapping[str, str]
    norm_eps: Mapping[str, float]
    source: str
    head: str | None
    remark: str = ""
    preprocessing: Preprocessing | None = None

    @property
    def has_head(self) -> bool:
        """Whether any tensor belongs to a head."""
        return any(name.startswith(HEAD) for name in self.tensors)


def translated(
    checkpoint: Checkpoint,
    backbone: BackboneSpec,
    held: BackboneSpec | ModelSpec,
    name: str,
    head: str | None,
    norm_eps: Mapping[str, float] | None = None,
) -> Translated:
    """Rename the tensors of a file for a backbone, those of its head included.

    Args:
        checkpoint: the file.
        backbone: that the tensors are for.
        held: what the names in the file are those of: a backbone with its classifier, or a model with another head.
        name: of the layout that the file is in.
        head: name of the head that the file has tensors of, if any.
        norm_eps: epsilon of the norms by part, where it is known.

    Raises:
        MisfitError: the layout is not one of these, or the file holds tensors that the whole network lacks.
    """
    tensors, source = checkpoint.tensors, str(checkpoint.path)
    if name == NATIVE:
        unknown = sorted(set(tensors) - known(tensors, backbone)) if backbone.stages else []
        names: Mapping[str, str] = {}
        ours = dict(tensors)
        eps: Mapping[str, float] = {"backbone": backbone.norm_eps} if backbone.stages else {}
        remark, preprocessing = "", None
    else:
        layout = layout_of(held, name)
        unknown = sorted(set(tensors) - set(layout.names.values()))
        names = layout.names
        ours = {
            key: _flat(tensors[theirs]) if key in layout.pointwise else tensors[theirs]
            for key, theirs in names.items()
            if theirs in tensors
        }
        _check_architecture(checkpoint, name, layout)
        stated = checkpoint.config.norm_eps
        eps = layout.norm_eps_by_part if stated is None else dict.fromkeys(layout.norm_eps_by_part, stated)
        remark, preprocessing = layout.remark, layout.preprocessing
    if unknown:
        raise MisfitError(f"{source} holds {first_few(unknown, 3)}, which the model lacks")
    if backbone.stages:
        _check_ranks(ours, backbone, classifier=head == CLASSIFICATION)
    return Translated(
        ours, names, eps if norm_eps is None else {**eps, **norm_eps}, source, head, remark, preprocessing
    )


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


def guessed(checkpoint: Checkpoint, spec: BackboneSpec | ModelSpec) -> tuple[str, BackboneSpec | ModelSpec] | None:
    """Return the layout that a file which says nothing of itself is in, and what it is of; None for none of these.

    It may be the classifier of the same backbone, or the very model.
    """
    found, backbone = set(checkpoint.tensors), backbone_of(spec)
    same_head = (
        spec if isinstance(spec, ModelSpec) and found & {HEAD + name for name in spec.head_tensors} else backbone
    )
    ways: list[tuple[int, str, BackboneSpec | ModelSpec]] = [
        (sum(not name.startswith(HEAD) for name in known(found, backbone)), NATIVE, same_head)
    ]
    for name in backbone.layouts:
        ways.append((_overlap(found, backbone, name), name, backbone))
        if isinstance(spec, ModelSpec) and name in spec.head.layouts:
            ways.append((_overlap(found, spec, name), name, spec))
    overlap, name, held = max(ways, key=lambda way: way[0])
    if overlap:
        return name, held
    return None if backbone.stages else (NATIVE, same_head)


def _overlap(found: set[str], spec: BackboneSpec | ModelSpec, name: str) -> int:
    return len(found & set(layout_of(spec, name).names.values()))
