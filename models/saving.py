"""Writing models and converting files: tensors in somebody's names, with what is needed to build the model again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor, nn

from featuretap.catalogue.request import backbone_of
from featuretap.models.built import unwrap
from featuretap.models.inference_only import is_fused
from featuretap.models.loading import arguments_of, record_of
from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.description import Description, options_in_words
from featuretap.specs.layout import NATIVE, Layout
from featuretap.specs.network_digest import network_digest
from featuretap.specs.options import options_of
from featuretap.specs.validation import default_of
from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import FeaturetapError, OptionError, WeightsError
from featuretap.weights.consistency import check_unchanged, difference, head_shapes, model_spec
from featuretap.weights.expected_tensors import COUNTER, HEAD, STATISTICS
from featuretap.weights.files import CONFIG, FILE
from featuretap.weights.folding import eps_of, fold_eps
from featuretap.weights.header import with_sorted_header
from featuretap.weights.layouts import CLASSIFICATION, MisfitError, layout_of
from featuretap.weights.metadata import Record, metadata_of
from featuretap.weights.norms import MAKES
from featuretap.weights.reading import DTYPES
from featuretap.weights.sources import source_at
from featuretap.weights.timm_config import timm_config

if TYPE_CHECKING:
    from featuretap.registry.registry import Registry

__all__ = ["convert", "record_of_model", "store"]

SUFFIX = ".safetensors"

OTHER_KINDS = tuple(
    f".{kind}"
    for kind in ["pth", "pt", "bin", "ckpt", "pkl", "onnx", "npz", "npy", "h5", "tflite", "json", "gz", "zip"]
)
"""Endings of files that somebody could expect to get; any other name is a folder's."""

BATCH_NORMS = ("BatchNorm2d", "SyncBatchNorm", "FrozenBatchNorm2d")
"""Norms that compute what other libraries' batch norms do with the same tensors."""


@dataclass(frozen=True)
class Storable:
    """A model's weights, free of their module.

    Args:
        tensors: our name → tensor.
        norm_eps: path of a batch norm in our names → its epsilon.
        description: of the model.
        spec: the model's, or that of a bare backbone, options applied.
        by_name: whether the registry builds that backbone by its name.
    """

    tensors: Mapping[str, Tensor]
    norm_eps: Mapping[str, float]
    description: Description
    spec: BackboneSpec | ModelSpec
    by_name: bool

    @property
    def backbone(self) -> BackboneSpec:
        """The model's backbone."""
        return backbone_of(self.spec)

    @property
    def words(self) -> str:
        """The model in words, for messages."""
        return options_in_words(self.description.name, self.description.options)

    def part(self, name: str) -> str:
        """Return the part of the model that a tensor or a norm belongs to."""
        return "head" if self.description.head and name.startswith(HEAD) else "backbone"


def store(registry: Registry, model: nn.Module, path: Path, layout: str) -> Path:
    """Write a model; see `Registry.save`.

    Raises:
        OptionError: no model of featuretap's, or a path of another kind of file.
        WeightsError: a model that was changed, that the layout cannot hold, or that cannot be written.
    """
    target = _target(path)
    inner = unwrap(model, "registry.save writes")
    description = inner.description
    if is_fused(inner):
        raise WeightsError(
            f"cannot save {options_in_words(description.name, description.options)}, which is fused, so that its batch "
            "norms are gone; save the model that it was made from"
        )
    backbone = description.backbone
    if backbone is None:
        raise OptionError("the model's description lacks its backbone; change it with dataclasses.replace only")
    live = "backbone." if description.head else ""
    tensors = {name.removeprefix(live): tensor for name, tensor in inner.state_dict().items()}
    eps = {path.removeprefix(live): value for path, value in eps_of(inner).items()}
    spec = model_spec(registry, description, backbone)
    check_unchanged(_shapes(tensors), description, spec)
    by_name = _is_by_name(registry, description, backbone)
    stated = _stated(registry, description) if by_name else description
    return _write(Storable(tensors, eps, stated, spec, by_name), target, layout)


def record_of_model(registry: Registry, description: Description) -> Record:
    """Return what files that hold no tensors of ours, such as exported ones, say of a model."""
    backbone = description.backbone
    by_name = backbone is not None and _is_by_name(registry, description, backbone)
    stated = _stated(registry, description) if by_name else description
    return Record(stated, NATIVE, network=network_digest(backbone) if backbone else "", by_name=by_name)


def convert(registry: Registry, source: Path, target: Path, layout: str) -> Path:
    """Rewrite a file; see `Registry.convert`.

    Raises:
        OptionError: a path of another kind of file.
        WeightsError: a file that cannot be read, recognised or held by the layout, or cannot be written.
    """
    written = _target(target)
    read = source_at(source, registry)
    checkpoint = read.checkpoint
    record = record_of(checkpoint, registry)
    said = record.description
    if not record.by_name:
        raise WeightsError(
            f"{str(checkpoint.path)!r} was saved from a BackboneSpec {said.name!r} that no name stands for; load it "
            "with registry.load(path, name=spec) and save the model"
        )
    try:
        # Names and shapes are the same whatever the norm; layouts that cannot hold it see that by its tensors.
        arguments = arguments_of(record, checkpoint, {"norm": None})
        spec = registry.spec(said.name, **arguments)
        weights = read.translated(spec)
    except FeaturetapError as error:
        raise WeightsError(f"cannot convert {str(checkpoint.path)!r}: {error}") from error
    except MisfitError as problem:
        raise WeightsError(f"cannot convert {str(checkpoint.path)!r}: {problem}") from None
    backbone = backbone_of(spec)
    contradiction = difference(_shapes(weights.tensors), backbone, head_shapes(spec))
    if record.network not in ("", network_digest(backbone)):
        contradiction = "it was another network when the file was written"
    if contradiction:
        raise WeightsError(f"cannot convert {str(checkpoint.path)!r}, which says it is {said.name!r}: {contradiction}")
    model = Storable(weights.tensors, {}, said, spec, by_name=True)
    norms = [name.removesuffix(".running_var") for name in weights.tensors if name.endswith(".running_var")]
    known = {path: weights.norm_eps.get(path, weights.norm_eps.get(model.part(path))) for path in norms}
    eps = {path: value for path, value in known.items() if value is not None}
    return _write(replace(model, norm_eps=eps), written, layout)


def _write(model: Storable, target: Path, layout: str) -> Path:
    description = model.description
    config = None
    if layout == NATIVE:
        tensors, eps = model.tensors, _eps_by_part(model)
    else:
        theirs = _layout(model, layout)
        tensors, eps = _renamed(model, theirs), theirs.norm_eps_by_part
        if layout == "timm":
            config = timm_config(description, model.backbone, theirs, _features(model))
    metadata = metadata_of(Record(description, layout, eps, network_digest(model.backbone), model.by_name))
    content = safetensors.torch.save({name: _plain(tensor) for name, tensor in tensors.items()}, metadata)
    content = with_sorted_header(content)
    if target.suffix == SUFFIX:
        replace_files({target: content})
        return target
    with _folder(target):
        replace_files({target / FILE: content, target / CONFIG: (config or _config(metadata)).encode()})
    return target / FILE


def _target(path: Path) -> Path:
    if path.suffix not in OTHER_KINDS or path.is_dir():
        return path
    raise OptionError(
        f"cannot save to {str(path)!r}: {path.suffix} files are not written; give a name that ends in {SUFFIX}, or a "
        "folder"
    )


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder, and take it away again where nothing could be written into it."""
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise WeightsError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    except BaseException:
        if made:
            with suppress(OSError):
                path.rmdir()
        raise


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _is_by_name(registry: Registry, description: Description, backbone: BackboneSpec) -> bool:
    options = {name: value for name, value in description.options.items() if name != "norm"}
    try:
        known = registry.spec(
            description.name,
            features_only=description.head is None,
            head=description.head,
            num_classes=description.num_classes,
            taps=description.taps,
            **options,
        )
    except FeaturetapError:
        return False
    return _unlabelled(backbone_of(known)) == _unlabelled(backbone)


def _unlabelled(spec: BackboneSpec) -> BackboneSpec:
    return replace(spec, aliases=(), description="", published_as="", variant_of="", norm=None, tags=())


def _stated(registry: Registry, description: Description) -> Description:
    """Return the description as it travels: in words that other machines understand, defaults left out.

    A variant of the user's catalogue becomes the base and the options that it stands for.
    """
    spec = registry.catalogued(description.name)
    name, options = description.name, dict(description.options)
    if registry.is_users(name) and spec.variant_of:
        name, options = spec.variant_of, {**{n: default_of(stated) for n, stated in spec.options.items()}, **options}
        spec = registry.catalogued(name)
    usual = options_of(spec)
    if description.head:
        head = registry.head(description.head)
        usual = {key: value for key, value in usual.items() if key not in head.backbone_options} | dict(head.options)
    changed = {key: value for key, value in options.items() if key not in usual or value != usual[key]}
    # Equal models are equal files; an option of a factory may have the name of ours and be of another kind.
    plain = {key: float(value) if key == "width" and spec.stages else value for key, value in changed.items()}
    return replace(description, name=name, options=dict(sorted(plain.items())))


def _eps_by_part(model: Storable) -> dict[str, float]:
    """Return the epsilon that most norms of each part have, and those of the others by their paths."""
    eps: dict[str, float] = {}
    for part in ("backbone", "head"):
        own = {path: value for path, value in model.norm_eps.items() if model.part(path) == part}
        if own:
            eps[part] = Counter(own.values()).most_common(1)[0][0]
            eps |= {path: value for path, value in own.items() if value != eps[part]}
    return eps


def _layout(model: Storable, name: str) -> Layout:
    try:
        layout = layout_of(model.spec, name)
    except MisfitError as problem:
        raise WeightsError(f"cannot save {model.words} for {name}: {problem}") from None
    reason = _not_held(model, layout)
    if reason:
        raise WeightsError(f"cannot save {model.words} for {name}, {reason}; save it in the layout {NATIVE!r}")
    return layout


def _not_held(model: Storable, layout: Layout) -> str:
    """Return why a library's own model cannot hold this one, in words; empty where it can."""
    head, spec = model.description.head, model.backbone
    if not layout.architecture:
        return "which has no such network"
    if head and layout.features_only:
        return "which has that network for features only"
    ours, theirs = model.description.preprocessing, layout.preprocessing
    if theirs and (ours.mean, ours.std) != (theirs.mean, theirs.std):
        return f"which has image_mean={theirs.mean} and image_std={theirs.std} in it, not {ours.mean} and {ours.std}"
    if head == CLASSIFICATION and tuple(spec.taps) != spec.levels[-1:]:
        return f"whose classifiers read {spec.levels[-1]}, not {', '.join(spec.taps)}"
    norm = str(model.description.options.get("norm", BATCH_NORMS[0]))
    whole = [
        f"{path}.norm.{kind}"
        for block in spec.blocks
        for path, layer in block.layer_paths()
        if layer.norm_channels
        for kind in STATISTICS
    ]
    if norm.removeprefix(MAKES) not in BATCH_NORMS or not all(name in model.tensors for name in whole):
        return f"whose batch norms cannot hold norm={norm}"
    return ""


def _renamed(model: Storable, layout: Layout) -> dict[str, Tensor]:
    wanted = layout.norm_eps_by_part
    eps = {path: (own, wanted.get(model.part(path), own)) for path, own in model.norm_eps.items()}
    tensors = fold_eps(model.tensors, eps)
    named = {
        layout.names[name]: tensor[..., None, None] if name in layout.pointwise else tensor
        for name, tensor in tensors.items()
    }
    for name, theirs in layout.names.items():
        # A norm that counts no batches, such as FrozenBatchNorm2d.
        if name.endswith(COUNTER) and name not in tensors and name.replace(COUNTER, "running_var") in tensors:
            named[theirs] = torch.zeros((), dtype=torch.int64)
    return named


def _features(model: Storable) -> int:
    hidden = model.tensors.get(f"{HEAD}hidden.weight")
    return len(hidden) if hidden is not None else list(model.backbone.taps.values())[-1].channels


def _plain(tensor: Tensor) -> Tensor:
    if tensor.is_meta or tensor.dtype not in DTYPES.values():
        kind = "without values (on the meta device)" if tensor.is_meta else f"of {tensor.dtype}"
        raise WeightsError(f"cannot save tensors {kind}; give the model values of a usual type first")
    # A copy of its own: in C order, on the CPU, and sharing nothing with another tensor.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _config(metadata: Mapping[str, str]) -> str:
    return json.dumps(dict(sorted(metadata.items())), indent=2) + "\n"
