"""Write checkpoints: tensors in a layout, with the record that describes the model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.description import Description, format_options
from featuretap.specs.head import backbone_of
from featuretap.specs.layout import NATIVE, Layout
from featuretap.specs.network_digest import network_digest
from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import OptionError, WeightsError
from featuretap.weights.expected_tensors import COUNTER, HEAD, STATISTICS
from featuretap.weights.files import CONFIG, FILE, SUFFIX
from featuretap.weights.folding import fold_eps
from featuretap.weights.header import with_sorted_header
from featuretap.weights.layouts import CLASSIFICATION, MismatchError, layout_for
from featuretap.weights.metadata import Record, metadata_of
from featuretap.weights.norms import BATCH_NORMS, is_batch_norm
from featuretap.weights.several_heads import merge_tensors
from featuretap.weights.timm_config import timm_config
from featuretap.weights.torch_tensors import DTYPES

OTHER_SUFFIXES = tuple(
    f".{kind}"
    for kind in [
        "pth",
        "pt",
        "bin",
        "ckpt",
        "pkl",
        "onnx",
        "npz",
        "npy",
        "pdparams",
        "h5",
        "tflite",
        "json",
        "gz",
        "zip",
    ]
)
"""Suffixes of unsupported file types. A path with any other suffix is a folder."""


@dataclass(frozen=True)
class ModelWeights:
    """The weights of a model without its module.

    Args:
        tensors: native name → tensor.
        norm_eps: native path of a batch norm → its epsilon.
        description: description of the model.
        spec: spec of the model or the bare backbone, with options applied.
        by_name: whether the registry builds the backbone by its name.
        check_unchanged: checks the file that the tensors are mapped from, if any; called after they are copied.
    """

    tensors: Mapping[str, Tensor]
    norm_eps: Mapping[str, float]
    description: Description
    spec: BackboneSpec | ModelSpec
    by_name: bool
    check_unchanged: Callable[[], None] | None = None

    @property
    def backbone(self) -> BackboneSpec:
        """Spec of the backbone."""
        return backbone_of(self.spec)

    def part_of(self, name: str) -> str:
        """Return the part, "backbone" or "head", of the tensor or norm with this `name`."""
        return "head" if self.description.head and name.startswith(HEAD) else "backbone"


def write_checkpoint(model: ModelWeights, target: Path, layout_name: str) -> Path:
    """Write a checkpoint as a file, or as a folder with a `config.json`.

    Args:
        model: the weights.
        target: path of the file or folder.
        layout_name: name of the layout.

    Returns:
        The path of the file.

    Raises:
        WeightsError: the layout cannot represent the model, or the file cannot be written.
    """
    config = ""
    if layout_name == NATIVE:
        tensors, eps = model.tensors, _most_common_eps(model)
    else:
        layout = _select_layout(model, layout_name)
        tensors, eps = _rename(model, layout), layout.norm_eps_by_part
        if layout_name == "timm" and target.suffix != SUFFIX:
            hidden = model.tensors.get(f"{HEAD}hidden.weight")
            features = list(model.backbone.taps.values())[-1].channels if hidden is None else len(hidden)
            config = timm_config(model.description, model.backbone, layout, features)
            if model.description.head is None:
                tensors |= {name: torch.zeros_like(like, device="cpu") for name, like in layout.required.items()}
    return _write(target, tensors, _record(model, layout_name, eps), config, model.check_unchanged)


def write_multi_head_checkpoint(backbone: ModelWeights, heads: Mapping[str, ModelWeights], target: Path) -> Path:
    """Write the checkpoint of a model with several heads as a file, or as a folder with a `config.json`.

    Args:
        backbone: the weights of the backbone.
        heads: name → weights of the model with this head alone.
        target: path of the file or folder.

    Returns:
        The path of the file.

    Raises:
        WeightsError: the file cannot be written.
    """
    tensors = merge_tensors(backbone.tensors, {name: model.tensors for name, model in heads.items()})
    records = {name: _record(model, NATIVE, _most_common_eps(model)) for name, model in heads.items()}
    record = replace(_record(backbone, NATIVE, _most_common_eps(backbone)), heads=records)
    return _write(target, tensors, record)


def _record(model: ModelWeights, layout: str, eps: Mapping[str, float]) -> Record:
    return Record(model.description, layout, eps, network_digest(model.backbone), model.by_name)


def _write(
    target: Path,
    tensors: Mapping[str, Tensor],
    record: Record,
    config: str = "",
    check_unchanged: Callable[[], None] | None = None,
) -> Path:
    """Write tensors and a record as a file, or as a folder with a `config.json`. Return the path of the file."""
    metadata = metadata_of(record)
    content = safetensors.torch.save({name: _copy(tensor) for name, tensor in tensors.items()}, metadata)
    if check_unchanged:
        check_unchanged()
    content = with_sorted_header(content)
    if target.suffix == SUFFIX:
        replace_files({target: content})
        return target
    config = config or json.dumps(dict(sorted(metadata.items())), indent=2) + "\n"
    with _folder(target):
        replace_files({target / FILE: content, target / CONFIG: config.encode()})
    return target / FILE


def check_target(path: Path) -> None:
    """Check that a path has the suffix of a checkpoint or of a folder.

    Args:
        path: the path.

    Raises:
        OptionError: the path has the suffix of another file type.
    """
    if path.suffix in OTHER_SUFFIXES and not path.is_dir():
        raise OptionError(
            f"cannot save to {str(path)!r}: {path.suffix} files are not supported; use a name that ends in {SUFFIX}, "
            "or a folder"
        )


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return name → shape of `tensors`."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Create a folder, and remove it again if writing fails."""
    is_new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise WeightsError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    except BaseException:
        if is_new:
            with suppress(OSError):
                path.rmdir()
        raise


def _most_common_eps(model: ModelWeights) -> dict[str, float]:
    """Return the most common epsilon of each part's norms, and other values by path."""
    eps: dict[str, float] = {}
    for part in ("backbone", "head"):
        own = {path: value for path, value in model.norm_eps.items() if model.part_of(path) == part}
        if own:
            eps[part] = Counter(own.values()).most_common(1)[0][0]
            eps |= {path: value for path, value in own.items() if value != eps[part]}
    return eps


def _select_layout(model: ModelWeights, name: str) -> Layout:
    label = format_options(model.description.name, model.description.options)
    try:
        layout = layout_for(model.spec, name)
    except MismatchError as mismatch:
        raise WeightsError(f"cannot save {label} in the layout {name!r}: {mismatch}") from None
    reason = _explain_unsupported(model, layout)
    if reason:
        raise WeightsError(f"cannot save {label} in the layout {name!r}, {reason}; use the layout {NATIVE!r}")
    return layout


def _explain_unsupported(model: ModelWeights, layout: Layout) -> str:
    """Return why the model of another library cannot represent this model, or an empty string."""
    head, spec = model.description.head, model.backbone
    if not layout.writable:
        return "which can only be read"
    if not layout.architecture:
        return "which does not have this network"
    family = spec.classifier
    dropout = model.description.options.get("dropout")
    if head == CLASSIFICATION and family.evaluation_scale(dropout) != family.evaluation_scale():
        return (
            f"whose classifiers scale by {family.evaluation_scale()} in evaluation mode, not by 1 - dropout={dropout}"
        )
    if head and layout.features_only:
        return "which has this network for features only" if spec.stages else "whose classifier has other layers"
    own, fixed = model.description.preprocessing, layout.preprocessing
    if fixed and (own.mean, own.std) != (fixed.mean, fixed.std):
        return f"which has fixed image_mean={fixed.mean} and image_std={fixed.std}, not {own.mean} and {own.std}"
    if head == CLASSIFICATION and tuple(spec.taps) != spec.levels[-1:]:
        return f"whose classifiers read {spec.levels[-1]}, not {', '.join(spec.taps)}"
    norm = model.description.options.get("norm", BATCH_NORMS[0])
    statistics = (
        f"{path}.norm.{kind}"
        for block in spec.blocks
        for path, layer in block.layer_paths()
        if layer.norm_channels
        for kind in STATISTICS
    )
    if not is_batch_norm(norm) or not all(name in model.tensors for name in statistics):
        return f"whose batch norms cannot represent norm={norm}"
    return ""


def _rename(model: ModelWeights, layout: Layout) -> dict[str, Tensor]:
    eps_of_part = layout.norm_eps_by_part
    eps = {path: (own, eps_of_part.get(model.part_of(path), own)) for path, own in model.norm_eps.items()}
    tensors = fold_eps(model.tensors, eps)
    renamed = {
        layout.names[name]: layout.to_stored(name, tensor)
        for name, tensor in tensors.items()
        # Some libraries do not count batches.
        if name in layout.names or not name.endswith(COUNTER)
    }
    for name, file_name in layout.names.items():
        # Norms such as FrozenBatchNorm2d do not count batches.
        if name.endswith(COUNTER) and name not in tensors and name.replace(COUNTER, "running_var") in tensors:
            renamed[file_name] = torch.zeros((), dtype=torch.int64)
    return renamed


def _copy(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that does not share memory."""
    if tensor.is_meta or tensor.dtype not in DTYPES.values():
        kind = "without values (on the meta device)" if tensor.is_meta else f"of {tensor.dtype}"
        raise WeightsError(f"cannot save tensors {kind}; convert the model to a supported dtype first")
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
