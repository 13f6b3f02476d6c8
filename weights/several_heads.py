"""Checkpoints of models with several heads, and their parts: the backbone and each head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from featuretap.support.errors import Hint, UnknownHeadError, WeightsError, did_you_mean
from featuretap.weights.expected_tensors import HEAD
from featuretap.weights.reading import Checkpoint

HEADS = "heads."
"""Prefix of the tensors of several heads in a file, followed by the head's name."""

Value = TypeVar("Value")


def has_several_heads(checkpoint: Checkpoint) -> bool:
    """Return whether a `checkpoint` records a model with several heads."""
    return checkpoint.record is not None and bool(checkpoint.record.heads)


def check_one_head(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint does not have several heads.

    Args:
        checkpoint: the checkpoint.

    Raises:
        WeightsError: the checkpoint has several heads.
    """
    if checkpoint.record and checkpoint.record.heads:
        first, *_ = heads = list(checkpoint.record.heads)
        raise WeightsError(
            f"{str(checkpoint.path)!r} contains a model with several heads: {', '.join(heads)}",
            hint=Hint("choose one, such as with", f"registry.load(path, head={first!r})"),
        )


def backbone_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint of the backbone of a model with several heads. Return any other `checkpoint` unmodified."""
    if not checkpoint.record or not checkpoint.record.heads:
        return checkpoint
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(HEADS)}
    description = replace(checkpoint.record.description, heads={})
    return replace(checkpoint, tensors=tensors, record=replace(checkpoint.record, description=description, heads={}))


def head_checkpoint(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Return the checkpoint of the backbone with one head of a model with several heads.

    Args:
        checkpoint: the checkpoint. Checkpoints without several heads are returned unmodified.
        name: name of the head in the model.

    Returns:
        The checkpoint of the part.

    Raises:
        UnknownHeadError: the model has no head with this name.
    """
    if not checkpoint.record or not checkpoint.record.heads:
        return checkpoint
    heads = checkpoint.record.heads
    if name not in heads:
        hint = did_you_mean(name, heads) or ";"
        raise UnknownHeadError(f"{str(checkpoint.path)!r} has no head {name!r}{hint} its heads are {', '.join(heads)}")
    return replace(checkpoint, tensors=select_tensors(checkpoint.tensors, name), record=heads[name])


def select_part(checkpoint: Checkpoint, arguments: dict[str, Any]) -> Checkpoint:
    """Return the part of a checkpoint with several heads that arguments of `load` select.

    Args:
        checkpoint: the checkpoint.
        arguments: arguments of `load`. `head` selects a head and is removed; `features_only` selects the backbone.

    Returns:
        The checkpoint of the part.

    Raises:
        UnknownHeadError: the model has no head with this name.
        WeightsError: neither argument is set.
    """
    head = arguments.pop("head", None)
    if head is None and not arguments.get("features_only"):
        check_one_head(checkpoint)
    return backbone_checkpoint(checkpoint) if head is None else head_checkpoint(checkpoint, head)


def checkpoint_for(checkpoint: Checkpoint, head: str | None) -> Checkpoint:
    """Return the part of a checkpoint with several heads for a model with at most one head.

    Args:
        checkpoint: the checkpoint. Checkpoints without several heads are returned unmodified.
        head: name of the model's head in the catalogue, such as "lraspp". If the checkpoint does not have exactly one
            such head, the backbone is returned.

    Returns:
        The checkpoint of the part.
    """
    heads = checkpoint.record.heads if checkpoint.record else {}
    same = [name for name, record in heads.items() if record.description.head == head]
    return head_checkpoint(checkpoint, same[0]) if len(same) == 1 else backbone_checkpoint(checkpoint)


def select_tensors(tensors: Mapping[str, Value], name: str) -> dict[str, Value]:
    """Return the tensors of the backbone and the head `name`, under the names for a model with this head alone."""
    own = f"{HEADS}{name}."
    return {
        key.replace(own, HEAD, 1) if key.startswith(own) else key: tensor
        for key, tensor in tensors.items()
        if key.startswith(own) or not key.startswith(HEADS)
    }


def merge_tensors(backbone: Mapping[str, Value], heads: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    """Merge the tensors of a `backbone` and of models with one head each (`heads`) for a model with several heads."""
    merged = dict(backbone)
    for name, tensors in heads.items():
        merged |= {
            f"{HEADS}{name}.{key.removeprefix(HEAD)}": tensor for key, tensor in tensors.items() if key.startswith(HEAD)
        }
    return merged
