"""What a model returns ↔ the outputs of a runtime, which are tensors by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from featuretap.runtimes.signature import DETECTIONS, SINGLE_OUTPUTS, by_head
from featuretap.specs.description import Description

LOGITS = "out"
"""The output by which a segmenter is known, as torchvision calls it."""


def flatten(returned: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Return what a model returns as tensors by name, those of several heads as "head.name".

    Args:
        returned: a tensor, tensors by name, or either of them by the names of heads.
        names: of the outputs.
    """
    if isinstance(returned, Tensor):
        return {names[0]: returned}
    outputs: dict[str, Tensor] = {}
    for name, value in returned.items():
        if name in names:
            outputs[name] = value
            continue
        own = [output.removeprefix(f"{name}.") for output in names if output.startswith(f"{name}.")]
        # A segmenter behind a detector returns a dict for each image.
        images = isinstance(value, list)
        value = {output: torch.stack([one[output] for one in value]) for output in own} if images else value
        outputs |= {f"{name}.{output}": tensor for output, tensor in flatten(value, own).items()}
    return outputs


def restore(outputs: Mapping[str, Tensor], description: Description, *, as_dict: bool) -> Any:
    """Return the outputs of a runtime as the model returns them.

    Args:
        outputs: name → tensor, in order.
        description: of the model.
        as_dict: whether a model with one head, or none, returns a dict; otherwise it returns its only output.
    """
    if description.heads:
        nested = by_head(outputs, description)
        behind_detector = description.preprocessing.inside
        return {
            name: _restore_head(own, description.heads[name], behind_detector=behind_detector)
            for name, own in nested.items()
        }
    if tuple(outputs) == DETECTIONS:
        *padded, numbers = outputs.values()
        return [
            {name: values[place, :number] for name, values in zip(DETECTIONS, padded, strict=False)}
            for place, number in enumerate(numbers.tolist())
        ]
    return dict(outputs) if as_dict else next(iter(outputs.values()))


def join_images(found: Sequence[Any]) -> Any:
    """Return what a model returns for single images as it returns it for all of them."""
    first = found[0]
    if isinstance(first, Tensor):
        return torch.cat(list(found))
    if isinstance(first, dict):
        return {name: join_images([one[name] for one in found]) for name in first}
    return [one for objects in found for one in objects]


def _restore_head(outputs: Mapping[str, Tensor], description: Description, *, behind_detector: bool) -> Any:
    restored = restore(outputs, description, as_dict=tuple(outputs) not in SINGLE_OUTPUTS)
    if not (behind_detector and LOGITS in outputs):
        return restored
    images = len(next(iter(outputs.values())))
    return [{name: logits[place] for name, logits in outputs.items()} for place in range(images)]
