"""A backbone and classifier with the methods, attributes and arguments of a timm model."""

# torch.jit.script evaluates annotations and only supports the names in typing.
# ruff: noqa: UP006, UP007, UP035, UP045
from collections import OrderedDict
from typing import Any, Dict, Iterable, List, Optional, Tuple, Union

import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.models import FeatureListNet
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch._jit_internal import is_scripting

from featuretap import registry
from featuretap.backbones.checkpointing import checkpointed
from featuretap.heads.modules.classification import ClassificationHead
from featuretap.specs import BackboneSpec
from featuretap.support.errors import OptionError
from featuretap.weights.folding import eps_of, fold_eps, set_eps


class Level(nn.Sequential):
    """The blocks of a level. With `grad_checkpointing`, activations are recomputed in the backward pass."""

    def __init__(self, blocks: "OrderedDict[str, nn.Module]") -> None:
        super().__init__(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last block."""
        for block in self:
            x = checkpointed(block, x) if self.grad_checkpointing and not is_scripting() else block(x)
        return x


class TimmNetwork(nn.Module):
    """A backbone with its classifier as a timm model. It maps images (N, in_chans, H, W) to logits (N, num_classes).

    The modules are those of `registry.build`, and parameters have their names in featuretap files: `stages.C1…`,
    `head.hidden`, `head.logits`. Other arguments, methods and attributes follow timm.

    Args:
        backbone: name of the backbone in the registry.
        reduced_tail: whether to halve the channels after C4.
        pretrained: the tag of published weights, or False for random weights.
        num_classes: number of logits; 0 returns the features before them.
        in_chans: number of image channels.
        global_pool: "avg", "max" or "avgmax", or timm's "fast…" variants. "" returns logits at every position, (N,
            num_classes, H', W').
        drop_rate: dropout probability of the head in training; None for the default of the family.
        output_stride: 32, 16 or 8.
        device: device of the parameters.
        dtype: dtype of the parameters.
    """

    def __init__(
        self,
        backbone: str,
        *,
        reduced_tail: bool = False,
        pretrained: Union[str, bool] = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: Optional[float] = None,
        output_stride: int = 32,
        device: Union[torch.device, str, None] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        options: Dict[str, Any] = {
            "reduced_tail": reduced_tail,
            "in_channels": in_chans,
            "output_stride": output_stride,
        }
        built: Any = registry.build(
            backbone, pretrained=pretrained, num_classes=num_classes, dropout=drop_rate, **options
        )
        spec = registry.spec(backbone, features_only=True, **options)
        assert isinstance(spec, BackboneSpec)
        if pretrained:
            # timm checkpoints do not record the epsilon of batch norms, so that of a new model must apply.
            eps = {path: (own, spec.norm_eps) for path, own in eps_of(built).items()}
            built.load_state_dict(fold_eps(built.state_dict(), eps))
            set_eps(built, spec.norm_eps)
        # The same blocks in plain chains. The backbone's chains also return maps, which timm does not expect.
        self.stages = nn.Sequential(
            OrderedDict(
                (level, Level(OrderedDict(stage.named_children())))
                for level, stage in built.backbone.stages.named_children()
            )
        )
        self.global_pool = _pool(global_pool)
        self.head: ClassificationHead = built.head
        self.feature_info: List[Dict[str, Any]] = [
            {"num_chs": tap.channels, "reduction": tap.stride, "module": f"stages.{level}"}
            for level, tap in spec.taps.items()
        ]
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = self.head.dropout.p
        self.num_features: int = self.feature_info[-1]["num_chs"]
        self.head_hidden_size = self._head_channels()
        self.grad_checkpointing = False
        self.to(device=device, dtype=dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map (N, num_features, H', W')."""
        return self._run(x, [], len(self.stages))[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits for the last map.

        Args:
            x: the last map (N, num_features, H', W').
            pre_logits: whether to return the features before the logits.

        Returns:
            Logits or features (N, C), or (N, C, H', W') without pooling.
        """
        pooled = self.global_pool(x).movedim(1, -1)
        # One row per image or, without pooling, per position of the map.
        y = pooled.flatten(0, -2)
        y = self.head.dropout(self.head.activation(self.head.norm(self.head.hidden(y))))
        if not pre_logits:
            y = self.head.logits(y)
        return y.view(pooled.shape[:-1] + y.shape[-1:]).movedim(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, or the features before them if there are no classes."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Union[List[Tensor], Tuple[Tensor, List[Tensor]]]:
        """Return the last map and the maps of some levels.

        Args:
            x: images (N, in_chans, H, W).
            indices: indices of the levels, or the number of last levels; None for all.
            norm: ignored, since no norm follows the last map.
            stop_early: whether to skip the levels after the last requested one, whose map is then the last map.
            output_fmt: must be "NCHW".
            intermediates_only: whether to omit the last map.

        Returns:
            The last map and the list of requested maps, or only the list.
        """
        assert output_fmt == "NCHW", "maps are returned as NCHW only"
        selected, last = feature_take_indices(len(self.stages), indices)
        x, maps = self._run(x, selected, last + 1 if stop_early else len(self.stages))
        if intermediates_only:
            return maps
        return x, maps

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Remove the levels after the last requested one.

        Args:
            indices: indices of the levels, or the number of last levels.
            prune_norm: ignored, since no norm follows the last map.
            prune_head: whether to remove the head. It is always removed if its input is.

        Returns:
            The indices, counted from the first level.
        """
        selected: List[int]
        selected, last = feature_take_indices(len(self.stages), indices)
        if prune_head or last + 1 < len(self.stages):
            self.stages = self.stages[: last + 1]
            self.num_features = self.feature_info[last]["num_chs"]
            self.head.hidden = self.head.norm = self.head.activation = nn.Identity()
            # Some families' dropout scales the hidden layer, which is gone.
            rate: Any = self.head.dropout.p
            self.head.dropout = nn.Dropout(rate).train(self.training)
            self.head_hidden_size = self._head_channels()
            self.reset_classifier(0, "")
        return selected

    def get_classifier(self) -> nn.Module:
        """Return the layer that computes the logits."""
        return self.head.logits

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the last layer of the head by a randomly initialized one.

        Args:
            num_classes: number of logits; 0 removes the layer.
            global_pool: type of pooling; None keeps it.
        """
        self.num_classes = num_classes
        self.head.logits = (self._logits(num_classes) if num_classes else nn.Identity()).train(self.training)
        if global_pool is not None:
            self.global_pool = _pool(global_pool).train(self.training)

    def group_matcher(self, coarse: bool = False) -> Dict[str, str]:
        """Return patterns that group parameters by block, or by level if `coarse`, for layer-wise learning rates."""
        return {"stem": r"^stages\.C1\.0\.", "blocks": r"^stages\.C(\d+)" if coarse else r"^stages\.C(\d+)\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether training recomputes the activations inside each block instead of storing them."""
        self.grad_checkpointing = enable
        _checkpoint_levels(self.stages, enable)

    def _run(self, x: Tensor, selected: List[int], count: int) -> Tuple[Tensor, List[Tensor]]:
        """Run the first `count` levels, and return the last map and the maps of the levels `selected`."""
        maps: List[Tensor] = []
        for index, stage in enumerate(self.stages):
            if index < count:
                x = stage(x)
                if index in selected:
                    maps.append(x)
        return x, maps

    def _logits(self, num_classes: int) -> nn.Module:
        like = next(self.parameters())
        logits = nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
        # The initialization of the classification head.
        nn.init.normal_(logits.weight, 0, 0.01)
        nn.init.zeros_(logits.bias)
        return logits

    def _head_channels(self) -> int:
        hidden = self.head.hidden
        return hidden.out_features if isinstance(hidden, nn.Linear) else self.num_features


def extract_levels(
    model: TimmNetwork, out_indices: Union[int, Tuple[int, ...]], flatten_sequential: bool = True
) -> "LevelListNet":
    """Return the feature extractor for `features_only=True`.

    Its children are the levels under their own names, by which transformers requests maps. timm's option
    `flatten_sequential` applies to the children of the model; the children of `stages` are the levels already.

    Args:
        model: the network.
        out_indices: indices of the levels, or the number of last levels.
        flatten_sequential: ignored.

    Returns:
        A module that maps images to a list of maps and does not run later layers.
    """
    levels = model.stages
    levels.feature_info = [  # type: ignore[assignment]
        {**info, "module": level} for info, level in zip(model.feature_info, levels._modules, strict=True)
    ]
    return LevelListNet(levels, out_indices=out_indices)


class LevelListNet(FeatureListNet):
    """timm's feature extractor with checkpointing inside the levels.

    timm's own checkpointing updates the running statistics of batch norms twice.
    """

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether training recomputes the activations inside each block instead of storing them."""
        _checkpoint_levels(self.values(), enable)


def _checkpoint_levels(levels: Iterable[nn.Module], enable: bool) -> None:
    for level in levels:
        assert isinstance(level, Level)
        level.grad_checkpointing = enable


def _pool(kind: str) -> nn.Module:
    if "cat" in kind:
        raise OptionError(
            f"global_pool={kind!r} doubles the channels, which the head does not support; use 'avg' or 'avgmax'"
        )
    return SelectAdaptivePool2d(pool_type=kind, flatten=bool(kind))
