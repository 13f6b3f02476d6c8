"""Copying tensors into the modules of a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from featuretap.specs import BackboneSpec
from featuretap.support.text import first_few
from featuretap.weights.expected_tensors import COUNTER, HEAD, is_below, layer_paths
from featuretap.weights.layouts import MismatchError
from featuretap.weights.translation import NativeTensors


@torch.no_grad()
def fill(
    parts: Mapping[str, nn.Module],
    spec: BackboneSpec,
    weights: NativeTensors,
    *,
    skip: Collection[str] = (),
    keep_dtype: bool = False,
) -> None:
    """Copy tensors into uninitialised modules, those that the modules declare.

    Args:
        parts: prefix in the native layout → module.
        spec: the backbone, cut behind its last tap.
        weights: a file's tensors.
        skip: prefixes of the names that keep their random initialisation.
        keep_dtype: whether the model takes the file's dtypes, or keeps its own.

    Raises:
        MismatchError: tensors that are missing, of another shape or kind, or that no part of the network accounts for.
    """
    used = set()
    for prefix, module in parts.items():
        for key, target in module.state_dict(keep_vars=True).items():
            name = prefix + key
            if name.startswith(tuple(skip)):
                continue
            used.add(name)
            if name not in weights.tensors:
                if not name.endswith(COUNTER):
                    raise MismatchError(_lacks(name, weights))
                target.zero_()
                continue
            tensor = weights.tensors[name]
            if spec.stages and name == spec.stem and tensor.ndim == 4:
                tensor = adapt_stem(tensor, target)
            _check(name, tensor, target, weights)
            if keep_dtype:
                target.data = tensor.to(target.device, copy=True)
            else:
                target.copy_(tensor)
    unused = set(weights.tensors) - used
    _check_norms(parts, unused)
    built = layer_paths(spec.blocks) if spec.stages else None
    extra = sorted(name for name in unused if _is_unexpected(name, built, HEAD in parts, skip))
    if extra:
        raise MismatchError(f"{weights.source} holds {first_few(extra, 3)}, which the model lacks")


def adapt_stem(weight: Tensor, target: Tensor) -> Tensor:
    """Return a stem's weight (O, C, k, k) for another number of image channels.

    One channel gets the sum, so that a grey image acts as before; more get those of the file in turn, scaled by the
    ratio of the numbers to keep the magnitude of the output. As timm does.
    """
    channels, wanted = weight.shape[1], target.shape[1]
    if wanted == channels:
        return weight
    # In single precision at least; numbers of one byte cannot be added at all.
    wide = weight if weight.element_size() >= 4 else weight.float()
    if wanted == 1:
        return wide.sum(1, keepdim=True).to(weight.dtype)
    repeated = wide.repeat(1, -(-wanted // channels), 1, 1)[:, :wanted]
    return (repeated * (channels / wanted)).to(weight.dtype)


def _lacks(name: str, weights: NativeTensors) -> str:
    in_file = weights.file_names.get(name, name)
    return f"{weights.source} lacks {in_file}" + (f", our {name}" if in_file != name else "")


def _check(name: str, tensor: Tensor, target: Tensor, weights: NativeTensors) -> None:
    if tensor.shape != target.shape:
        remark = f" ({weights.remark})" if weights.remark else ""
        raise MismatchError(f"{name} is {tuple(tensor.shape)} in the file, {tuple(target.shape)} in the model{remark}")
    if tensor.is_floating_point() != target.is_floating_point():
        raise MismatchError(f"{name} holds {tensor.dtype} in the file, {target.dtype} in the model")


def _check_norms(parts: Mapping[str, nn.Module], unused: Collection[str]) -> None:
    """Refuse norms that have no place for the running statistics that the file has of them."""
    lost = {name.removesuffix(".running_mean") for name in unused if name.endswith(".running_mean")}
    for prefix, module in parts.items() if lost else ():
        for path, norm in module.named_modules():
            if prefix + path in lost:
                raise MismatchError(
                    f"its norm {type(norm).__name__} cannot hold the file's running statistics; use a batch norm, or "
                    "build without pretrained"
                )


def _is_unexpected(name: str, built: Collection[str] | None, headed: bool, skip: Collection[str]) -> bool:
    if name.startswith(HEAD):
        return headed and not name.startswith(tuple(skip))
    # A norm such as FrozenBatchNorm2d counts no batches; layers behind the last tap are not built.
    return built is None or (not name.endswith(COUNTER) and is_below(name, built))
