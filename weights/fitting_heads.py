"""Fit checkpoints to requests for several heads, with or without PyTorch."""

from __future__ import annotations

from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.multi_head_request import MultiHeadRequest, describe_heads
from featuretap.weights.fitting import FittedWeights, HeadPlan, fit_checkpoint
from featuretap.weights.reading import Checkpoint
from featuretap.weights.several_heads import HEADS, backbone_checkpoint, head_checkpoint, merge_tensors


def fit_several_heads(request: MultiHeadRequest, checkpoint: Checkpoint, catalogue: Catalogue) -> FittedWeights:
    """Fit a checkpoint to a model with several heads, with tensors under the names of its file.

    Args:
        request: request for the model.
        checkpoint: checkpoint of a model with any number of heads.
        catalogue: the catalogue that resolved the request.

    Returns:
        The tensors and the description.

    Raises:
        WeightsError: the weights do not fit, or a part of the model can only be built with PyTorch.
    """
    backbone = fit_checkpoint(request.backbone, backbone_checkpoint(checkpoint), catalogue)
    heads = {
        name: fit_checkpoint(single, head_checkpoint(checkpoint, name), catalogue)
        for name, single in request.heads.items()
    }
    eps = dict(backbone.norm_eps)
    for name, fitted in heads.items():
        eps |= {
            f"{HEADS}{name}{path.removeprefix('head')}": value
            for path, value in fitted.norm_eps.items()
            if path == "head" or path.startswith("head.")
        }
    return FittedWeights(
        merge_tensors(backbone.tensors, {name: fitted.tensors for name, fitted in heads.items()}),
        eps,
        describe_heads(backbone.description, {name: fitted.description for name, fitted in heads.items()}),
        next((fitted.head for fitted in heads.values() if fitted.head.is_random), HeadPlan()),
        backbone.check_unchanged,
    )
