"""Models of PyTorch as predictors."""

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
    """A module as a predictor (see `Predictor`); it stays on its device and in its dtype.

    Args:
        model: that `registry.build` or `registry.load` returned, in evaluation mode.

    Raises:
        OptionError: it was not built by featuretap or is in training mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.description = description_of(model, "predictions are made by")
        if model.training:
            raise OptionError(
                "predictions are made in evaluation, and the model is in training; call model.eval() first"
            )
        self.taps: Mapping[str, Tap] = getattr(model, "taps", {})
        self._model = model
        # Compiled models have no parameters.
        self._like = next(filter(Tensor.is_floating_point, model.parameters()), torch.empty(0))
        heads = predicting_heads(self.description).values()
        self._detects = any(task_of(head) == "detection" for head in heads)

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """Return an image as `registry.transforms` prepares it, as a batch (1, C, H, W)."""
        return prepare(image, self.description.preprocessing)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.float32]) -> Mapping[str, Any]:
        """Return name → a value for each of the images (N, C, H, W), detections as long as they are.

        Of a model with several heads, each has such a mapping under its name.
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
    """Build a backbone by name with weights, or load a weights file.

    Args:
        name: of the backbone; None for that of the file, or the default.
        weights: a tag, a file or its address, "none" for random ones, or None or "default" for the catalogue's default.
        **arguments: of `registry.build` or `registry.load`.
    """
    if name is None and is_location(weights):
        return registry.load(weights, **arguments)
    pretrained = PRETRAINED.get(weights, weights or "")
    return registry.build(name or DEFAULT_BACKBONE, pretrained=pretrained, **arguments)


def open_module(name: str | None, weights: str | None, **arguments: Any) -> ModulePredictor:
    """Return a model in evaluation mode as a predictor, on the GPU if there is one; arguments as of `open_model`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = open_model(name, weights, **arguments)
    # Models keep the dtype of their file, and float16 does not run on a CPU.
    return ModulePredictor(model.eval().to(device, torch.float32).to(memory_format=torch.channels_last))
