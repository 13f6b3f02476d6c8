"""Writing models and converting files: tensors in somebody's names, with what is needed to build the model again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor, nn

from featuretap.registry.description import Description, options_in_words
from featuretap.registry.errors import FeaturetapError, OptionError, WeightsError
from featuretap.registry.layout import NATIVE, Layout
from featuretap.registry.options import options_of
from featuretap.registry.request import backbone_of
from featuretap.registry.specs import BackboneSpec, ModelSpec
from featuretap.registry.weights.expectation import COUNTER, HEAD, Shapes, backbone_tensors, head_tensors, misfit
from featuretap.registry.weights.files import CONFIG, FILE
from featuretap.registry.weights.folding import eps_of, folded
from featuretap.registry.weights.header import with_sorted_header
from featuretap.registry.weights.metadata import Record, metadata_of
from featuretap.registry.weights.reading import read
from featuretap.registry.weights.replacing import replace_files
from featuretap.registry.weights.restoring import arguments_of, record_of
from featuretap.registry.weights.timm_config import timm_config
from featuretap.registry.weights.translation import MisfitError, layout_of, translated

if TYPE_CHECKING:
    from featuretap.registry.registry import Registry

__all__ = ["convert", "store"]

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Storable:
    """A model's weights, free of their module.

    Args:
        tensors: our name → tensor.
        norm_eps: path of a batch norm in our names → its epsilon.
        description: of the model.
        backbone: the model's backbone, options applied.
        by_name: whether the registry builds that backbone by its name.
    """

    tensors: Mapping[str, Tensor]
    norm_eps: Mapping[str, float]
    description: Description
    backbone: BackboneSpec
    by_name: bool


def store(registry: Registry, model: nn.Module, path: Path, layout: str) -> Path:
    """Write a model; see `Registry.save`."""
    target = _target(path)
    inner = _unwrapped(model)
    description = inner.description
    assert isinstance(description, Description)
    backbone = description.backbone
    assert backbone is not None
    tensors = {_file_name(name): tensor for name, tensor in inner.state_dict().items()}
    eps = {_file_name(norm): value for norm, value in eps_of(inner).items()}
    _check_unchanged(registry, tensors, description, backbone)
    by_name = _is_by_name(registry, description, backbone)
    return _write(Storable(tensors, eps, description, backbone, by_name), target, layout)


def convert(registry: Registry, source: Path, target: Path, layout: str) -> Path:
    """Rewrite a file; see `Registry.convert`."""
    written = _target(target)
    checkpoint = read(source)
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
        backbone = backbone_of(registry.spec(said.name, **arguments))
        weights = translated(checkpoint, backbone)
    except FeaturetapError as error:
        raise WeightsError(f"cannot convert {str(checkpoint.path)!r}: {error}") from error
    except MisfitError as problem:
        raise WeightsError(f"cannot convert {str(checkpoint.path)!r}: {problem}") from None
    difference = _difference(weights.tensors, backbone, _head_shapes(registry, said, backbone))
    if difference:
        raise WeightsError(f"cannot convert {str(checkpoint.path)!r}, which says it is {said.name!r}: {difference}")
    parts = {
        name.removesuffix(".running_var"): "head" if name.startswith(HEAD) else "backbone"
        for name in weights.tensors
        if name.endswith(".running_var")
    }
    eps = {norm: weights.norm_eps[part] for norm, part in parts.items() if part in weights.norm_eps}
    return _write(Storable(weights.tensors, eps, said, backbone, by_name=True), written, layout)


def _write(model: Storable, target: Path, layout: str) -> Path:
    description = model.description
    config = None
    if layout == NATIVE:
        tensors, eps = _with_one_eps(model)
    else:
        theirs = _layout(model, layout)
        tensors, eps = _renamed(model, theirs), {"backbone": theirs.norm_eps}
        if layout == "timm":
            config = timm_config(description, model.backbone, theirs, _features(model))
    metadata = metadata_of(Record(description, layout, eps, model.by_name))
    content = safetensors.torch.save({name: _plain(tensor) for name, tensor in tensors.items()}, metadata)
    content = with_sorted_header(content)
    if target.suffix == SUFFIX:
        replace_files({target: content})
        return target
    with _folder(target):
        replace_files({target / FILE: content, target / CONFIG: (config or _config(metadata)).encode()})
    return target / FILE


def _target(path: Path) -> Path:
    if path.suffix == SUFFIX or path.is_dir() or not path.suffix:
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
    except WeightsError:
        if made:
            path.rmdir()
        raise


def _unwrapped(model: nn.Module) -> nn.Module:
    inner: object = model
    while isinstance(inner, nn.Module):
        if isinstance(vars(inner).get("description"), Description):
            return inner
        inner = next((inner._modules[name] for name in ("module", "_orig_mod") if name in inner._modules), None)
    raise OptionError(
        f"{type(model).__name__} carries no description; registry.save writes models that registry.build or "
        "registry.load returned"
    )


def _file_name(name: str) -> str:
    return name.removeprefix("backbone.")


def _check_unchanged(
    registry: Registry, tensors: Mapping[str, Tensor], description: Description, backbone: BackboneSpec
) -> None:
    problem = _difference(tensors, backbone, _head_shapes(registry, description, backbone))
    if problem:
        words = options_in_words(description.name, description.options)
        raise WeightsError(
            f"cannot save {words}, which was changed after it was built: {problem}; build it as it is now (such as "
            "with num_classes=), and copy its state into that"
        )


def _head_shapes(registry: Registry, description: Description, backbone: BackboneSpec) -> dict[str, tuple[int, ...]]:
    if description.head is None:
        return {}
    own = {name: value for name, value in description.options.items() if name not in options_of(backbone)}
    model = registry.spec(
        backbone, head=description.head, num_classes=description.num_classes, taps=description.taps, **own
    )
    assert isinstance(model, ModelSpec)
    return head_tensors(model.head_layers)


def _difference(tensors: Mapping[str, Tensor], backbone: BackboneSpec, head: Shapes) -> str:
    """Return how tensors differ from those of a backbone's table, with norms of any one kind, and of its head."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
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
    expected |= head
    problem = misfit(found, expected)
    if problem:
        return problem
    for path, kind in zip(paths, kinds, strict=True):
        if kind != kinds[0]:
            return f"{path}.norm is of another kind than {paths[0]}.norm"
    known = (*(f"{path}.norm." for path in paths), *_open(backbone))
    extra = sorted(name for name in found if name not in expected and not name.startswith(known))
    return f"{extra[0]} is there, which it was not built with" if extra else ""


def _open(backbone: BackboneSpec) -> list[str]:
    """Return the beginnings of the names in layers that do not say which tensors they have."""
    return [
        f"{path}." for block in backbone.blocks for path, layer in block.layer_paths() if not hasattr(layer, "tensors")
    ]


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
    return replace(spec, aliases=(), description="", published_as="", norm=None)


def _with_one_eps(model: Storable) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the tensors with one epsilon in each part, the one that most of its norms have, and that epsilon."""
    tensors, eps = dict(model.tensors), {}
    for part in ("backbone", "head"):
        own = {path: value for path, value in model.norm_eps.items() if path.startswith(HEAD) == (part == "head")}
        if own:
            eps[part] = Counter(own.values()).most_common(1)[0][0]
            tensors = folded(tensors, own, eps[part])
    return tensors, eps


def _layout(model: Storable, name: str) -> Layout:
    words = options_in_words(model.description.name, model.description.options)
    try:
        layout = layout_of(model.backbone, name)
    except MisfitError as problem:
        raise WeightsError(f"cannot save {words} for {name}: {problem}") from None
    if not layout.architecture:
        raise WeightsError(
            f"cannot save {words} for {name}, which has no such network; save it in the layout {NATIVE!r}"
        )
    if layout.features_only and model.description.head:
        raise WeightsError(
            f"cannot save {words} for {name}, which has that network for features only; save it in the layout "
            f"{NATIVE!r}, or build it with features_only=True"
        )
    if model.description.head not in (None, "classification"):
        raise WeightsError(
            f"cannot save {words} for {name}, whose classifiers have no head {model.description.head!r}; save it in "
            f"the layout {NATIVE!r}"
        )
    lacking = [
        path
        for block in model.backbone.blocks
        for path, layer in block.layer_paths()
        if layer.norm_channels and f"{path}.norm.running_var" not in model.tensors
    ]
    if lacking:
        norm = model.description.options.get("norm", "another norm")
        raise WeightsError(
            f"cannot save {words} for {name}, whose batch norms cannot hold norm={norm}; save it in the layout "
            f"{NATIVE!r}"
        )
    return layout


def _renamed(model: Storable, layout: Layout) -> dict[str, Tensor]:
    tensors = folded(model.tensors, model.norm_eps, layout.norm_eps)
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
    # A copy of its own: in C order, on the CPU, and sharing nothing with another tensor.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _config(metadata: Mapping[str, str]) -> str:
    return json.dumps(dict(sorted(metadata.items())), indent=2) + "\n"
