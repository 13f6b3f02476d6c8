"""The classification head as a PyTorch module."""

# TorchScript and torch.fx do not support annotations as strings.
import torch
from torch import Tensor, nn

from featuretap.backbones.modules import ACTIVATIONS, skip_init
from featuretap.heads.classification import classification_layers
from featuretap.specs import BackboneSpec, BatchNorm, Linear


class OriginalDropout(nn.Module):
    """Dropout as in the original paper (Srivastava et al., JMLR 15, 2014), on (N, C).

    Training zeroes units with probability `p` and does not scale the others. Evaluation multiplies all units by 1 -
    `p`. `nn.Dropout` divides by 1 - `p` during training instead.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of `x`."""
        keep = 1 - self.p
        return x * torch.bernoulli(torch.full_like(x, keep)) if self.training else x * keep

    def extra_repr(self) -> str:
        """Return the rate as text."""
        return f"p={self.p}"


class ClassificationHead(nn.Module):
    """Classify one map (N, C, H, W) of any size: returns logits (N, num_classes).

    Without classes, it returns the features before the logits, (N, hidden) or (N, C).
    """

    def __init__(
        self,
        tap: str,
        hidden: nn.Module,
        norm: nn.Module,
        activation: nn.Module,
        dropout: nn.Module,
        logits: nn.Module,
    ) -> None:
        super().__init__()
        self.tap = tap
        self.hidden = hidden
        self.norm = norm
        self.activation = activation
        self.dropout = dropout
        self.logits = logits

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        """Return logits, or features without classes, from a dict of `maps`."""
        pooled = maps[self.tap].mean((2, 3))
        return self.logits(self.dropout(self.activation(self.norm(self.hidden(pooled)))))

    @torch.no_grad()
    def initialize(self) -> None:
        """Initialize weights from N(0, 0.01) and biases with 0, as in torchvision, and the norm as identity."""
        for layer in (self.hidden, self.logits):
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(0, 0.01)
                if layer.bias is not None:
                    layer.bias.zero_()
        if isinstance(self.norm, nn.BatchNorm1d):
            self.norm.reset_parameters()


def classification(backbone: BackboneSpec, *, num_classes: int, dropout: float | None = None) -> ClassificationHead:
    """Return the classification head for a backbone with one tap.

    Args:
        backbone: the resolved spec of the backbone.
        num_classes: number of logits; 0 for pooled features.
        dropout: dropout rate during training; None for the family's rate.

    Returns:
        The head, with uninitialized weights.
    """
    family = backbone.classifier
    rate = family.dropout if dropout is None else dropout
    modules: dict[str, nn.Module] = {
        layer.name: _module(layer, backbone) for layer in classification_layers(backbone, num_classes=num_classes)
    }
    (tap,) = backbone.taps
    activation = ACTIVATIONS[family.activation]() if family.hidden else nn.Identity()
    hidden, norm, logits = (modules.get(name, nn.Identity()) for name in ("hidden", "norm", "logits"))
    units = nn.Dropout(rate) if family.inverted_dropout else OriginalDropout(rate)
    return ClassificationHead(tap, hidden, norm, activation, units, logits)


def _module(layer: Linear | BatchNorm, backbone: BackboneSpec) -> nn.Module:
    if isinstance(layer, BatchNorm):
        return skip_init(nn.BatchNorm1d, layer.channels, backbone.norm_eps, backbone.norm_momentum)
    return skip_init(nn.Linear, layer.in_channels, layer.out_channels, layer.bias)
