"""Models with several heads that share one backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's convention

from featuretap.backbones.inputs import ImageModel
from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.multi_head_request import MultiHeadRequest, describe_heads
from featuretap.models.building import build_model
from featuretap.models.built import Built
from featuretap.models.factories import own_class
from featuretap.specs import ModelSpec
from featuretap.support.errors import OptionError
from featuretap.weights.opening import open_checkpoint
from featuretap.weights.reading import Checkpoint
from featuretap.weights.several_heads import backbone_checkpoint, head_checkpoint


class MultiHeadModel(ImageModel, Built):
    """A backbone with several heads. It maps images to a dict from head name to the output of this head.

    Without a detection head, images are a tensor (N, in_channels, H, W), normalized as by `registry.transforms`.

    With a detection head, images are a list of tensors (C, H, W) of any sizes with values from 0 to 1, or one tensor
    (N, C, H, W). The detection head resizes, normalizes and batches them for all heads. Boxes and masks are in pixels
    of the input images. Segmentation heads then return a list with {"out": logits (num_classes, H, W)} for each image,
    like detection heads. Other heads return their output for the batch.

    Args:
        backbone: a backbone that returns the taps of all heads.
        singles: name → model with this head alone.

    Attributes:
        heads: name → module of the head.
        classes: name → class of the model with this head alone.
        frozen_heads: names of heads that `train()` keeps in evaluation mode.
    """

    def __init__(self, backbone: Built, singles: Mapping[str, Built]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict({name: single.head for name, single in singles.items()})
        self.description = describe_heads(
            backbone.description, {name: single.description for name, single in singles.items()}
        )
        self.classes: dict[str, type[Any]] = {name: own_class(single) for name, single in singles.items()}
        self.frozen_heads: tuple[str, ...] = ()

    def forward(self, images: Tensor | Sequence[Tensor]) -> dict[str, Any]:
        """Return the output of every head.

        Args:
            images: a tensor (N, C, H, W), or a list of tensors (C, H, W) with a detection head.

        Returns:
            Name of the head → its output.

        Raises:
            OptionError: a detection head is in training mode, which requires targets.
        """
        detectors = [name for name in self.heads if self._spec(name).head.images == "raw"]
        if not detectors:
            maps = self.backbone(images)
            return {name: self._single(name, maps).forward(images) for name in self.heads}
        if self.heads[detectors[0]].training:
            raise OptionError(
                f"a model with several heads detects in evaluation mode only; train one head at a time: "
                f"registry.select_head(model, {detectors[0]!r})(images, targets)"
            )
        images = list(images)
        batch, _ = self.heads[detectors[0]].transform(images)  # type: ignore[operator]
        maps = self.backbone(batch.tensors)
        outputs: dict[str, Any] = {}
        for name in self.heads:
            single = self._single(name, maps)
            if name in detectors:
                detector = single.as_detector()
                detector.transform = _Prepared(batch, detector.transform)
                outputs[name] = detector(images)
            elif self._spec(name).head.task == "segmentation":
                outputs[name] = _restore_sizes(single.forward(batch.tensors), batch.image_sizes, images)
            else:
                outputs[name] = single.forward(batch.tensors)
        return outputs

    def train(self, mode: bool = True) -> Self:
        """Set training `mode` for everything that is not frozen."""
        super().train(mode)
        for name in self.frozen_heads:
            self.heads[name].eval()
        return self

    def _spec(self, name: str) -> ModelSpec:
        spec = self.description.heads[name].spec
        assert isinstance(spec, ModelSpec)
        return spec

    def _single(self, name: str, maps: Mapping[str, Tensor]) -> Any:
        """Return the model of one head, which reads feature maps that are already computed.

        Call its `forward` method, because FX only traces calls of registered modules.
        """
        read = {address: maps[address] for address in self._spec(name).backbone.taps}
        single: Any = self.classes[name](_computed(read), self.heads[name])
        # train() would also change parts of the head that are deliberately in evaluation mode.
        single.training = self.heads[name].training
        return single


class _Prepared(nn.Module):
    """Replacement for the transform of a torchvision detector whose images are already prepared."""

    def __init__(self, batch: Any, transform: Any) -> None:
        super().__init__()
        self.batch = batch
        self.postprocess = transform.postprocess

    def forward(self, images: Any, targets: Any = None) -> tuple[Any, Any]:
        """Return the prepared `images` and the `targets`."""
        return self.batch, targets


def _computed(maps: dict[str, Tensor]) -> Any:
    """Return a replacement for a backbone whose maps are already computed."""
    return lambda images: maps


def _restore_sizes(
    outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]], images: Sequence[Tensor]
) -> list[dict[str, Tensor]]:
    """Resize the logits of a padded batch (N, num_classes, H, W) to the original size of each image."""
    return [
        {
            name: F.interpolate(
                logits[index : index + 1, :, :height, :width],
                size=image.shape[-2:],
                mode="bilinear",
                align_corners=False,
            )[0]
            for name, logits in outputs.items()
        }
        for index, ((height, width), image) in enumerate(zip(sizes, images, strict=True))
    ]


def build_multi_head_model(
    request: MultiHeadRequest, catalogue: Catalogue, checkpoint: Checkpoint | None = None, *, keep_dtype: bool = False
) -> MultiHeadModel:
    """Build a backbone with several heads.

    Args:
        request: the resolved request.
        catalogue: the catalogue that resolved the request.
        checkpoint: as for `build_model`.
        keep_dtype: as for `build_model`.

    Returns:
        The model.

    Raises:
        WeightsError, PluginError: as for `build_model`.
    """
    if checkpoint is None and request.backbone.weights and not request.backbone.weights.factory_tag:
        checkpoint = open_checkpoint(request.backbone.weights, catalogue)
    of_backbone = checkpoint and backbone_checkpoint(checkpoint)
    backbone = build_model(request.backbone, catalogue, of_backbone, keep_dtype=keep_dtype)
    singles = {}
    for name, single in request.heads.items():
        of_head = checkpoint and head_checkpoint(checkpoint, name)
        singles[name] = build_model(single, catalogue, of_head, keep_dtype=keep_dtype, backbone=backbone)
    return MultiHeadModel(backbone, singles)
