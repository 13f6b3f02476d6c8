"""The mark of models whose batch norms were folded away: they compute, and can be neither trained nor saved."""

from __future__ import annotations

from typing import Self

from torch import nn

from featuretap.support.errors import TrainingError

__all__ = ["MARK", "InferenceOnly", "is_fused"]

MARK = "for_inference"
"""The name of the part of a model that refuses."""


class InferenceOnly(nn.Module):
    """The part by which a fused model refuses to be trained; it computes nothing."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation.

        Raises:
            TrainingError: training mode was asked for.
        """
        if mode:
            raise TrainingError(
                "a fused model is for inference, since its batch norms have become a part of its convolutions; train "
                "the model that it was made from, and fuse that afterwards"
            )
        return super().train(mode)


def is_fused(model: nn.Module) -> bool:
    """Say whether `registry.fuse` made a model."""
    return isinstance(model._modules.get(MARK), InferenceOnly)
