"""Convert between a model's return value and the named tensors of a runtime."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from featuretap.runtimes.signature import DETECTIONS, SINGLE_OUTPUTS, by_head
from featuretap.specs.description import Description

LOGITS = "out"
"""Name of a segmenter's main output, as in torchvision."""


def flatten(returned: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Flatten a model's return value. Outputs of several heads are named "head.output".

    Args:
        returned: a tensor, a dict of tensors, or a dict of these by head.
        names: output names, in order.

    Returns:
        Output → tensor.
    """
    if isinstance(returned, Tensor):
        return {names[0]: returned}
    outputs: dict[str, Tensor] = {}
    for name, value in returned.items():
        if name in names:
            outputs[name] = value
            continue
        own = [output.removeprefix(f"{name}.") for output in names if output.startswith(f"{name}.")]
        # Next to a detector, a segmenter returns a dict per image.
        images = isinstance(value, list)
        value = {output: torch.stack([one[output] for one in value]) for output in own} if images else value
        outputs |= {f"{name}.{output}": tensor for output, tensor in flatten(value, own).items()}
    return outputs


def restore(outputs: Mapping[str, Tensor], description: Description, *, as_dict: bool) -> Any:
    """Convert the outputs of a runtime to the model's return value.

    Args:
        outputs: output → tensor, in order.
        description: the model's description.
        as_dict: whether a model with at most one head returns a dict; otherwise it returns its only output.

    Returns:
        The return value.
    """
    if description.heads:
        nested = by_head(outputs, description)
        with_detector = description.preprocessing.inside
        return {
            name: _restore_head(own, description.heads[name], with_detector=with_detector)
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
    """Join the return values for single images into the return value for the batch."""
    first = found[0]
    if isinstance(first, Tensor):
        return torch.cat(list(found))
    if isinstance(first, dict):
        return {name: join_images([one[name] for one in found]) for name in first}
    return [one for objects in found for one in objects]


def _restore_head(outputs: Mapping[str, Tensor], description: Description, *, with_detector: bool) -> Any:
    restored = restore(outputs, description, as_dict=tuple(outputs) not in SINGLE_OUTPUTS)
    if not (with_detector and LOGITS in outputs):
        return restored
    images = len(next(iter(outputs.values())))
    return [{name: logits[place] for name, logits in outputs.items()} for place in range(images)]
