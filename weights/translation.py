"""Translate the tensors of a checkpoint from any known layout to the native layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.request import resolve_request
from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.head import backbone_of
from featuretap.specs.layout import NATIVE, Layout
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import FeaturetapError
from featuretap.support.text import first_few
from featuretap.weights.expected_tensors import HEAD, backbone_tensors, is_below, layer_paths
from featuretap.weights.identification import identify_tensors, knows_head, record_of_entry
from featuretap.weights.layouts import CLASSIFICATION, MismatchError, layout_for
from featuretap.weights.metadata import Record
from featuretap.weights.reading import Checkpoint, Tensor, convert_first

CLASSIFIER_RANKS = {"hidden.weight": 2, "hidden.bias": 1, "logits.weight": 2, "logits.bias": 1}
"""Number of dimensions of the tensors of a classifier's layers."""


@dataclass(frozen=True)
class NativeTensors:
    """The tensors of a checkpoint in the native layout.

    Args:
        tensors: native name → tensor.
        file_names: native name → name in the file, for names that differ.
        norm_eps: epsilon of the batch norms by part, as far as known.
        source: path of the file, for messages.
        head: name of the head with tensors in the file, if any.
        layout: name of the file's layout.
        remark: remark about tensors that do not fit, for messages.
        other_layers: whether the file has layers that the network does not have, such as the other library's
            classifier.
        preprocessing: normalization inside the model of the layout's library, if any.
    """

    tensors: Mapping[str, Tensor]
    file_names: Mapping[str, str]
    norm_eps: Mapping[str, float]
    source: str
    head: str | None
    layout: str = NATIVE
    remark: str = ""
    other_layers: bool = False
    preprocessing: Preprocessing | None = None

    @property
    def has_head(self) -> bool:
        """Whether any tensor belongs to a head."""
        return any(name.startswith(HEAD) for name in self.tensors)


def translate(checkpoint: Checkpoint, spec: BackboneSpec | ModelSpec, catalogue: Catalogue) -> NativeTensors:
    """Translate the tensors of a checkpoint for a backbone or a model. The file may have another head.

    The layout is the layout in the file's record or in the catalogue, or else the layout that names most of the
    tensors, or else the layout of the identified model.

    Args:
        checkpoint: the checkpoint.
        spec: spec of the backbone or the model.
        catalogue: the registry's catalogue.

    Returns:
        The tensors in the native layout.

    Raises:
        MismatchError: the file is not in a known layout of the backbone, or has tensors that the network does not have.
        WeightsError: the tensors of its head are only known with PyTorch, which is not used.
    """
    backbone = backbone_of(spec)
    record = checkpoint.record or (record_of_entry(checkpoint.entry) if checkpoint.entry else None)
    if record is None:
        guess = _guess_layout(checkpoint, spec)
        if guess:
            layout, owner = guess
            head = owner.head.name if isinstance(owner, ModelSpec) else CLASSIFICATION
            return _rename(checkpoint, backbone, owner, layout, head, {})
        record = identify_tensors(checkpoint.shapes, catalogue, checkpoint.framework)
        if record is None or record.description.name != backbone.name:
            layouts = ", ".join([NATIVE, *backbone.layouts])
            raise MismatchError(f"{checkpoint.path} is not in one of its layouts: {layouts}")
    owner = _find_owner(checkpoint, record, spec, catalogue)
    if record.layout != NATIVE and isinstance(owner, ModelSpec) and not knows_head(owner.head, checkpoint.framework):
        problem = f"has the head {owner.head.name!r} in the layout {record.layout!r}, which needs PyTorch"
        raise convert_first(problem, checkpoint.path)
    return _rename(checkpoint, backbone, owner, record.layout, record.description.head, record.norm_eps)


def _find_owner(
    checkpoint: Checkpoint, record: Record, spec: BackboneSpec | ModelSpec, catalogue: Catalogue
) -> BackboneSpec | ModelSpec:
    """Return the spec whose layout names the tensors of a checkpoint. Its head may differ from the head of `spec`."""
    described = record.description
    if isinstance(spec, ModelSpec) and spec.head.name == described.head:
        return spec
    if described.head in (None, CLASSIFICATION) or record.layout == NATIVE:
        return backbone_of(spec)
    options = {name: value for name, value in described.options.items() if name != "norm"}
    try:
        return resolve_request(
            catalogue,
            described.name,
            head=described.head,
            num_classes=described.num_classes,
            taps=described.taps or None,
            **options,
        ).spec
    except FeaturetapError as error:
        raise MismatchError(f"{checkpoint.path} contains an unknown model: {error}") from error


def _guess_layout(
    checkpoint: Checkpoint, spec: BackboneSpec | ModelSpec
) -> tuple[str, BackboneSpec | ModelSpec] | None:
    """Return the layout that names most of the tensors, and its spec: backbone with classifier, or model."""
    names, backbone = set(checkpoint.tensors), backbone_of(spec)
    model = spec if isinstance(spec, ModelSpec) and knows_head(spec.head, checkpoint.framework) else None
    native_owner = model if model and names & {HEAD + name for name in model.head_tensors} else backbone
    of_backbone = sum(is_below(name, layer_paths(backbone.all_blocks)) for name in names)
    guesses: list[tuple[int, str, BackboneSpec | ModelSpec]] = [(of_backbone, NATIVE, native_owner)]
    for layout in backbone.layouts:
        owners = (backbone, model) if model and layout in model.head.layouts else (backbone,)
        guesses += [(len(names & layout_for(owner, layout).known_names), layout, owner) for owner in owners]
    named, layout, owner = max(guesses, key=lambda guess: guess[0])
    if named:
        return layout, owner
    return None if backbone.stages else (NATIVE, native_owner)


def _rename(
    checkpoint: Checkpoint,
    backbone: BackboneSpec,
    owner: BackboneSpec | ModelSpec,
    layout_name: str,
    head: str | None,
    norm_eps: Mapping[str, float],
) -> NativeTensors:
    tensors = checkpoint.tensors
    if layout_name == NATIVE:
        paths = layer_paths(backbone.all_blocks) if backbone.stages else ()
        unknown = [name for name in tensors if backbone.stages and not (name.startswith(HEAD) or is_below(name, paths))]
        eps = {"backbone": backbone.norm_eps} if backbone.stages else {}
        native = NativeTensors(tensors, {}, {**eps, **norm_eps}, str(checkpoint.path), head)
    else:
        layout = layout_for(owner, layout_name)
        unknown = list(set(tensors) - layout.known_names)
        tensors = {layout.aliases.get(name, name): tensor for name, tensor in tensors.items()}
        _check_architecture(checkpoint, layout_name, layout)
        configured_eps = checkpoint.config.norm_eps
        eps = layout.norm_eps_by_part
        eps = eps if configured_eps is None else dict.fromkeys(eps or ("backbone",), configured_eps)
        native = NativeTensors(
            {
                name: layout.to_native(name, tensors[file_name])
                for name, file_name in layout.names.items()
                if file_name in tensors
            },
            layout.names,
            {**eps, **norm_eps},
            str(checkpoint.path),
            head,
            layout_name,
            layout.remark,
            not layout.unused.isdisjoint(tensors),
            layout.preprocessing,
        )
    if unknown:
        raise MismatchError(f"{checkpoint.path} has {first_few(sorted(unknown), 3)}, which the model does not have")
    if backbone.stages:
        _check_ranks(native.tensors, backbone, classifier=head == CLASSIFICATION)
    return native


def _check_architecture(checkpoint: Checkpoint, layout_name: str, layout: Layout) -> None:
    architecture = checkpoint.config.architecture
    if layout_name == "timm" and architecture and layout.architecture and architecture != layout.architecture:
        raise MismatchError(
            f"the config.json next to {checkpoint.path} describes timm's {architecture!r}, which differs from timm's "
            f"{layout.architecture!r}"
        )


def _check_ranks(tensors: Mapping[str, Tensor], spec: BackboneSpec, *, classifier: bool) -> None:
    """Refuse tensors that do not fit with any option: with a wrong number of dimensions, or without elements."""
    ranks = {name: len(shape) for name, shape in backbone_tensors(spec.all_blocks).items()}
    ranks |= {f"{HEAD}{name}": rank for name, rank in CLASSIFIER_RANKS.items()} if classifier else {}
    for name, tensor in tensors.items():
        if tensor.ndim != ranks.get(name, tensor.ndim) or 0 in tensor.shape:
            raise MismatchError(f"{name} is {tuple(tensor.shape)} in the file, which fits no option")
