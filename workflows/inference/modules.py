"""PyTorch models as predictors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from featuretap import registry
from featuretap.catalogue.pretrained import is_location
from featuretap.models.built import description_of
from featuretap.runtimes.preparing import prepare
from featuretap.specs.taps import Tap
from featuretap.support.errors import OptionError
from featuretap.workflows.inference.predictor import DEFAULT_BACKBONE, PRETRAINED, predicting_heads, task_of


class ModulePredictor:
    """A PyTorch module as a `Predictor`. The module keeps its device and dtype.

    Args:
        model: a model in evaluation mode from `registry.build` or `registry.load`.

    Raises:
        OptionError: featuretap did not build the model, or it is in training mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.description = description_of(model, "predictions are made by")
        if model.training:
            raise OptionError("cannot predict with a model in training mode; call model.eval() first")
        self.taps: Mapping[str, Tap] = getattr(model, "taps", {})
        self._model = model
        # Compiled models have no parameters.
        self._like = next(filter(Tensor.is_floating_point, model.parameters()), torch.empty(0))
        heads = predicting_heads(self.description).values()
        self._detects = any(task_of(head) == "detection" for head in heads)

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """Preprocess an image as `registry.transforms` does, into a batch of one (1, C, H, W)."""
        return prepare(image, self.description.preprocessing)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.float32]) -> Mapping[str, Any]:
        """Return output → values for each image. Models with several heads return head → output → values.

        Args:
            images: preprocessed images (N, C, H, W).

        Returns:
            The outputs. Detections are not padded: each image has as many as were found.
        """
        like = self._like
        batch = torch.from_numpy(images).to(like.device, like.dtype, memory_format=torch.channels_last)
        outputs = self._model(list(batch) if self._detects else batch)
        if self.description.heads:
            return {name: _by_name(values) for name, values in outputs.items()}
        return _by_name(outputs)


def _by_name(outputs: Any) -> dict[str, Any]:
    """Return the outputs of a model with one head as arrays by name."""
    if isinstance(outputs, Tensor):
        return {"logits": _as_array(outputs)}
    if isinstance(outputs, list):
        return {name: [_as_array(output[name]) for output in outputs] for name in outputs[0]}
    return {name: _as_array(values) for name, values in outputs.items()}


def _as_array(values: Tensor) -> NDArray[Any]:
    # NumPy has no bfloat16.
    return (values.float() if values.is_floating_point() else values).cpu().numpy()


def open_model(name: str | None, weights: str | None, **arguments: Any) -> nn.Module:
    """Build a backbone by name, or load a weights file.

    Args:
        name: name of the backbone; None for the file's backbone or the default.
        weights: a tag, a file or its URL, "none" for random weights, or None or "default" for the catalogue's default.
        **arguments: other arguments of `registry.build` or `registry.load`.

    Returns:
        The model.
    """
    if name is None and is_location(weights):
        return registry.load(weights, **arguments)
    pretrained = PRETRAINED.get(weights, weights or "")
    return registry.build(name or DEFAULT_BACKBONE, pretrained=pretrained, **arguments)


def open_module(name: str | None, weights: str | None, **arguments: Any) -> ModulePredictor:
    """Open a model in evaluation mode as a predictor, on the GPU if available.

    Args:
        name: name of the backbone; None for the file's backbone or the default.
        weights: as for `open_model`.
        **arguments: other arguments of `registry.build` or `registry.load`.

    Returns:
        The predictor.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = open_model(name, weights, **arguments)
    # Models keep the dtype of their file, but the CPU does not support float16.
    return ModulePredictor(model.eval().to(device, torch.float32).to(memory_format=torch.channels_last))
