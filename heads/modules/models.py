"""Models: a backbone with a head, with one class for each way of calling them."""

# TorchScript does not support annotations as strings.
# ruff: noqa: UP006, UP035
from typing import Any, Dict, List

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

from featuretap.backbones.inputs import ImageModel
from featuretap.support.errors import OptionError

Target = Dict[str, Tensor]


FEW_VALUES = "more than 1 value per channel"
"""Part of the error of PyTorch's batch norm for a batch that has one value for each channel."""


def single_image_error(head: str) -> OptionError:
    """Return the error for training on a single image, where a batch norm sees one value per channel.

    Args:
        head: name of the head.

    Returns:
        The error to raise.
    """
    return OptionError(
        f"head {head!r} cannot train on a single image: a batch norm reads a map of one pixel and needs {FEW_VALUES}; "
        "give two images or more, or set its norms to evaluation mode"
    )


class HeadedModel(ImageModel):
    """A backbone with a head."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing of the backbone.

        Args:
            enable: whether training recomputes the backbone's activations instead of storing them.

        Raises:
            OptionError: the backbone comes from a factory and does not support gradient checkpointing.
        """
        set_on_backbone: Any = getattr(self.backbone, "set_grad_checkpointing", None)
        if set_on_backbone is None:
            raise OptionError(
                f"{type(self.backbone).__name__} has no set_grad_checkpointing; wrap its modules with "
                "torch.utils.checkpoint, or train with smaller batches"
            )
        set_on_backbone(enable)

    def forward(self, images: Tensor) -> Tensor:
        """Return the head's output for images (N, in_channels, H, W)."""
        return self.head(self.backbone(images))


class PyramidModel(HeadedModel):
    """A backbone with a feature pyramid. Maps images (N, in_channels, H, W) to a dict of levels.

    Args:
        backbone: the backbone.
        head: the pyramid, whose `taps` the model also has.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__(backbone, head)
        self.taps = head.taps

    def forward(self, images: Tensor) -> Dict[str, Tensor]:  # type: ignore[override]
        """Return the levels for `images`, the finest first."""
        pyramid: Dict[str, Tensor] = self.head(self.backbone(images))
        return pyramid


class SegmentationModel(HeadedModel):
    """A segmenter: images (N, in_channels, H, W) → {"out": logits (N, num_classes, H, W)}, and optionally "aux"."""

    def forward(self, images: Tensor) -> Dict[str, Tensor]:  # type: ignore[override]
        """Return the logits, resized to the size of `images`."""
        small: Dict[str, Tensor] = self.head(self.backbone(images))
        logits: Dict[str, Tensor] = {}
        for name, values in small.items():
            logits[name] = F.interpolate(values, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return logits


class DetectionModel(HeadedModel):
    """A detector, with the interface of torchvision's detectors.

    Images are a list of tensors (C, H, W) with values from 0 to 1, of any size. Targets are a list of dicts, one for
    each image, with "boxes" (M, 4) as x1, y1, x2, y2 in pixels, "labels" (M,), and for Mask R-CNN "masks" (M, H, W).
    """

    def forward(  # type: ignore[override]
        self, images: List[Tensor], targets: List[Target] | None = None
    ) -> "Dict[str, Tensor] | List[Target]":
        """Return a dict of losses in training mode, and predictions in evaluation mode.

        Args:
            images: list of images (C, H, W).
            targets: one dict for each image; required in training mode.

        Returns:
            In evaluation mode, one dict for each image, with "boxes", "labels" and "scores", and for Mask R-CNN
            "masks".

        Raises:
            OptionError: in training mode, there is not one target for each image, a label is not a class of the head,
                or a batch norm would see a single value per channel because there is only one image.
        """
        if self.training and targets is not None:
            self._check_targets(targets, len(images))
        try:
            return self.as_detector()(images, targets)
        except ValueError as error:
            if FEW_VALUES not in str(error):
                raise
            description: Any = self.description
            raise single_image_error(description.head) from error

    def as_detector(self) -> nn.Module:
        """Return torchvision's detector, such as a `RetinaNet`, built from the same modules."""
        return self.head.detector_around(self.backbone)  # type: ignore[operator]

    def _check_targets(self, targets: List[Target], images: int) -> None:
        """Check targets, because torchvision's detectors fail on invalid ones with unrelated errors."""
        if len(targets) != images:
            raise OptionError(
                f"the numbers of images ({images}) and targets ({len(targets)}) differ; give one dict for each image"
            )
        description: Any = self.description
        for index, target in enumerate(targets):
            lacking = [key for key in ("boxes", "labels") if key not in target]
            if lacking:
                raise OptionError(f"targets[{index}] has no {lacking[0]!r}; give boxes (M, 4) and labels (M,)")
            labels = target["labels"]
            least, most = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
            if not 0 <= least <= most < description.num_classes:
                remedy = "count them from 0" if least < 0 else f"build it with num_classes={most + 1}, or more"
                raise OptionError(
                    f"targets[{index}] has labels from {least} to {most}, but the head has classes 0 to "
                    f"{description.num_classes - 1}; {remedy}"
                )

    def __prepare_scriptable__(self) -> nn.Module:
        # torch.jit.script compiles the module that this method returns, and torchvision's detectors support scripting.
        return self.as_detector()
