"""Our backbones as models of timm: `import featuretap.adapters.timm_models`, then `timm.create_model("featuretap_…")`.

Each is there whole and with a reduced tail: `featuretap_mobilenet_v3_large`, and
`featuretap_mobilenet_v3_large_reduced_tail`. Published weights are timm's tags of them, loaded and checked as
`registry.build` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    is_model,
    register_model,
    resolve_pretrained_cfg,
)
from torch import nn

from featuretap.adapters.timm_network import TimmNetwork, levels_only
from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.registry import Registry
from featuretap.specs import BackboneSpec
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import OptionError

OURS = Registry(discover=False)

CLASSES = {"imagenet1k": 1000, "imagenet21k_miil": 11221}
"""Label set → number of classes."""


def _models() -> Iterator[tuple[str, str, bool]]:
    """Yield every model: its name in timm, that of its backbone, and whether the tail is reduced."""
    for backbone in OURS.list_backbones():
        yield f"featuretap_{backbone}", backbone, False
        yield f"featuretap_{backbone}_reduced_tail", backbone, True


def _entries(backbone: str) -> list[WeightsEntry]:
    """Return published weights of the classifier; those of detectors fit no model of timm as a whole."""
    return [entry for entry in OURS.weights_of(backbone) if entry.head == "classification"]


def _cfgs(name: str, backbone: str) -> Iterator[tuple[str, PretrainedCfg]]:
    """Yield a model's name, or its name with a tag for each of its published weights, and what timm has to know."""
    spec = OURS.spec(backbone, features_only=True)
    assert isinstance(spec, BackboneSpec)
    entries = _entries(backbone)
    for entry in entries:
        cfg = _cfg(spec, entry.preprocessing, CLASSES[entry.classes])
        yield f"{name}.{entry.tag}", replace(cfg, url=entry.url, license=entry.license)
    if not entries:
        yield name, _cfg(spec, Preprocessing(), CLASSES["imagenet1k"])


def _cfg(spec: BackboneSpec, prepared: Preprocessing, num_classes: int) -> PretrainedCfg:
    crop, resize = prepared.crop, prepared.resize
    assert crop
    assert resize
    (_, height, width), *_ = reversed(spec.tap_shapes(crop, crop).values())
    return PretrainedCfg(
        input_size=(spec.in_channels, crop, crop),
        pool_size=(height, width),
        crop_pct=crop / resize,
        interpolation=prepared.interpolation,
        mean=prepared.mean,
        std=prepared.std,
        num_classes=num_classes,
        first_conv=spec.stem.removesuffix(".weight"),
        classifier="head.logits",
    )


def _entrypoint(name: str, backbone: str, reduced_tail: bool) -> Callable[..., nn.Module]:
    addresses: dict[Any, str] = {entry.url: entry.tag for entry in _entries(backbone)}

    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: Any = None,
        **options: Any,
    ) -> nn.Module:
        cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
        # A file that the caller names is one of timm's, which timm loads itself.
        tag = addresses.get(cfg.url, False) if pretrained and not (cfg.file or cfg.state_dict) else False
        if tag and cache_dir:
            raise OptionError(
                f"cannot keep the weights of {name!r} in cache_dir={str(cache_dir)!r}; they are kept in the caches of "
                "torch.hub and huggingface_hub, which TORCH_HOME and HF_HOME name"
            )
        model: nn.Module = build_model_with_cfg(
            partial(TimmNetwork, backbone, reduced_tail=reduced_tail, pretrained=tag),
            name,
            pretrained and not tag,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=pretrained_cfg_overlay,
            feature_cfg={"feature_cls": levels_only, "flatten_sequential": True},
            cache_dir=cache_dir,
            **options,
        )
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"Return {backbone!r}{' with a reduced tail' if reduced_tail else ''} as a model of timm."
    return create


default_cfgs = generate_default_cfgs(dict(cfg for name, backbone, _ in _models() for cfg in _cfgs(name, backbone)))
__all__ = ["default_cfgs", *default_cfgs]

for _name, _backbone, _reduced_tail in _models():
    # timm warns where a name is registered again, as reloading this module would.
    if not is_model(_name):
        globals()[_name] = register_model(_entrypoint(_name, _backbone, _reduced_tail))
