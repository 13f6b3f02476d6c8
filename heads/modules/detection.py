"""torchvision's detectors with our backbone inside: the model, and what of a detector follows the backbone.

torchvision's detectors own their backbone, and ours stands beside its head. So a head holds the neck and the parts of a
detector, and the detector itself is put together around backbone and head whenever it is called; no forward pass of
torchvision's is written again.
"""

# torch.jit.script reads annotations as objects, not as strings.
# ruff: noqa: UP006, UP035
from typing import Any, Dict, List

from torch import Tensor, nn

from featuretap.heads.modules.headed import HeadedModel
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import OptionError

__all__ = ["DetectionHead", "DetectionModel", "Necked"]

Target = Dict[str, Tensor]

PARTS = {"head": "predictor"}
"""What a detector calls its parts → what a head calls them, where they differ."""


class Necked(nn.Module):
    """A backbone with its neck, as torchvision's detectors want it.

    Images (N, in_channels, H, W) → dict of maps (N, C, H', W'), the finest first.
    """

    def __init__(self, body: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.neck = neck

    def forward(self, images: Tensor) -> Dict[str, Tensor]:
        """Return the maps."""
        return self.neck(self.body(images))


class DetectionHead(nn.Module):
    """The neck, and the parts of a detector of torchvision's that follow it.

    Args:
        neck: the dict of taps → the dict of maps (N, C, H', W') that the detector reads.
        detector: a detector of torchvision's, built on the neck in place of a backbone.
    """

    def __init__(self, neck: nn.Module, detector: nn.Module) -> None:
        super().__init__()
        self.neck = neck
        for name, part in detector.named_children():
            if name != "backbone":
                self.add_module(PARTS.get(name, name), part)
        # What is left is plain data: thresholds, matchers, coders. In a tuple, so that it counts as no part itself.
        detector._modules = {}
        self._shell = (detector,)

    def around(self, backbone: nn.Module) -> nn.Module:
        """Return torchvision's detector, made of a backbone and of the parts of this head, in the mode of this head."""
        (shell,) = self._shell
        names = {ours: theirs for theirs, ours in PARTS.items()}
        detector = object.__new__(type(shell))
        detector.__dict__.update(shell.__dict__)
        necked = Necked(backbone, self.neck)
        # Not train(), which would reach the parts: whoever has put some of them into evaluation wants them so.
        necked.training = self.training
        detector._modules = {
            "backbone": necked,
            **{names.get(name, name): part for name, part in self._modules.items() if name != "neck"},
        }
        detector.training = self.training
        return detector

    def forward(self, maps: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return what the predictors say at every place of every level, before boxes are made of it."""
        said: Dict[str, Tensor] = self.predictor(list(self.neck(maps).values()))  # type: ignore[operator]
        return said

    def normalise_as(self, preprocessing: Preprocessing) -> None:
        """Let the detector normalise its images as weights were trained."""
        transform: Any = self.transform
        transform.image_mean = list(preprocessing.mean)
        transform.image_std = list(preprocessing.std)


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
                know.
        """
        if self.training and targets is not None:
            self._check_targets(targets, len(images))
        return self.as_detector()(images, targets)

    def as_detector(self) -> nn.Module:
        """Return torchvision's own detector (a `RetinaNet`, say) around the same modules."""
        return self.head.around(self.backbone)  # type: ignore[operator]

    def _check_targets(self, targets: List[Target], images: int) -> None:
        """Say what torchvision's detectors only stumble over, far from where it is wrong."""
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
