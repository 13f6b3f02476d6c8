"""Models: a backbone with a head, one class for each way of running the two."""

# torch.jit.script reads annotations as objects, not as strings.
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
    """Return the error for training on a single image, of which a batch norm sees one pixel.

    Args:
        head: name of the head.
    """
    return OptionError(
        f"head {head!r} cannot train on a single image: a batch norm reads a map of one pixel and needs {FEW_VALUES}; "
        "give two images or more, or set its norms to evaluation mode"
    )


class HeadedModel(ImageModel):
    """A backbone and the head that reads its maps."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether training computes the activations of the backbone again instead of keeping them.

        Args:
            enable: whether it does.

        Raises:
            OptionError: the backbone is from a factory without this method.
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
    """A backbone with a pyramid: images (N, in_channels, H, W) → dict from level to map.

    Attributes:
        taps: level → channels and stride.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__(backbone, head)
        self.taps = head.taps

    def forward(self, images: Tensor) -> Dict[str, Tensor]:  # type: ignore[override]
        """Return the levels, the finest first."""
        pyramid: Dict[str, Tensor] = self.head(self.backbone(images))
        return pyramid


class SegmentationModel(HeadedModel):
    """Images (N, in_channels, H, W) → {"out": logits (N, num_classes, H, W)}, and "aux" where the head has it."""

    def forward(self, images: Tensor) -> Dict[str, Tensor]:  # type: ignore[override]
        """Return the logits, enlarged to the size of the images."""
        small: Dict[str, Tensor] = self.head(self.backbone(images))
        logits: Dict[str, Tensor] = {}
        for name, values in small.items():
            logits[name] = F.interpolate(values, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return logits


class DetectionModel(HeadedModel):
    """A backbone with a detection head, called as torchvision's detectors are.

    Images are a list of tensors (C, H, W) with values from 0 to 1, of any sizes. In training, with targets (for each
    image a dict of "boxes" (M, 4) as x1, y1, x2, y2 in pixels, "labels" (M,), and "masks" (M, H, W) for Mask R-CNN),
    losses come back as a dict; in evaluation, for each image a dict of "boxes", "labels", "scores" (and "masks").
    """

    def forward(  # type: ignore[override]
        self, images: List[Tensor], targets: List[Target] | None = None
    ) -> "Dict[str, Tensor] | List[Target]":
        """Return losses in training, predictions in evaluation.

        Raises:
            OptionError: in training, targets that are not one for each image, or with labels that the head does not
                know; or a single image, of which a batch norm sees one pixel.
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
        """Return torchvision's own detector (a `RetinaNet`, say) around the same modules."""
        return self.head.detector_around(self.backbone)  # type: ignore[operator]

    def _check_targets(self, targets: List[Target], images: int) -> None:
        """Refuse targets on which torchvision's detectors fail later, with an error that does not name the mistake."""
        if len(targets) != images:
            raise OptionError(f"{images} images came with {len(targets)} targets; give one dict for each image")
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
                    f"targets[{index}] has labels from {least} to {most}, and the head knows 0 to "
                    f"{description.num_classes - 1}; {remedy}"
                )

    def __prepare_scriptable__(self) -> nn.Module:
        # torch.jit.script compiles what this returns; torchvision's detectors are made for it.
        return self.as_detector()
