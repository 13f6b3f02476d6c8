"""Register featuretap's backbones as timm models.

After `import featuretap.adapters.timm`, `timm.create_model("featuretap_mobilenet_v3_large")` builds a backbone with its
classifier. Every backbone is also registered with a reduced tail, as `featuretap_mobilenet_v3_large_reduced_tail`.
Published weights are available as timm tags. They are loaded and verified as by `registry.build`.
"""

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

from featuretap.adapters.timm_network import TimmNetwork, extract_levels
from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.registry import Registry
from featuretap.specs import BackboneSpec
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import OptionError

OURS = Registry(discover=False)

CLASSES = {"imagenet1k": 1000, "imagenet21k_miil": 11221}
"""Label set → number of classes."""


MODELS = {
    f"featuretap_{backbone}{suffix}": (backbone, bool(suffix))
    for backbone in OURS.list_backbones()
    for suffix in ("", "_reduced_tail")
}
"""timm's name of a model → name of the backbone, and whether the tail is reduced."""


def _entries(backbone: str) -> list[WeightsEntry]:
    """Return the published classifier weights. Detector weights do not fit a timm model."""
    return [entry for entry in OURS.weights_of(backbone) if entry.head == "classification"]


def _cfgs(name: str, backbone: str) -> Iterator[tuple[str, PretrainedCfg]]:
    """Yield the name of a model, with the tag of each of its published weights, and timm's configuration."""
    spec = OURS.spec(backbone, features_only=True)
    assert isinstance(spec, BackboneSpec)
    entries: list[WeightsEntry | None] = [*_entries(backbone)]
    for entry in entries or [None]:
        preprocessing = entry.preprocessing if entry else Preprocessing()
        crop, resize = preprocessing.crop, preprocessing.resize
        assert crop
        assert resize
        *_, (_, height, width) = spec.tap_shapes(crop, crop).values()
        cfg = PretrainedCfg(
            input_size=(spec.in_channels, crop, crop),
            pool_size=(height, width),
            crop_pct=crop / resize,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
            num_classes=CLASSES[entry.classes if entry else "imagenet1k"],
            first_conv=spec.stem.removesuffix(".weight"),
            classifier="head.logits",
        )
        if entry:
            yield f"{name}.{entry.tag}", replace(cfg, url=entry.url, license=entry.license)
        else:
            yield name, cfg


def _entrypoint(name: str, backbone: str, reduced_tail: bool) -> Callable[..., nn.Module]:
    tags: dict[Any, str] = {entry.url: entry.tag for entry in _entries(backbone)}

    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: Any = None,
        **options: Any,
    ) -> nn.Module:
        cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
        # A file or state dict from the caller is in timm's format, and timm loads it.
        tag = tags.get(cfg.url, False) if pretrained and not (cfg.file or cfg.state_dict) else False
        if tag and cache_dir:
            raise OptionError(
                f"cannot store the weights of {name!r} in cache_dir={str(cache_dir)!r}; they are stored in the caches "
                "of torch.hub and huggingface_hub, so set TORCH_HOME or HF_HOME instead"
            )
        model: nn.Module = build_model_with_cfg(
            partial(TimmNetwork, backbone, reduced_tail=reduced_tail, pretrained=tag),
            name,
            pretrained and not tag,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=pretrained_cfg_overlay,
            feature_cfg={"feature_cls": extract_levels, "flatten_sequential": True},
            cache_dir=cache_dir,
            **options,
        )
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"Return {backbone!r}{' with a reduced tail' if reduced_tail else ''} as a timm model."
    return create


default_cfgs = generate_default_cfgs(
    dict(cfg for name, (backbone, _) in MODELS.items() for cfg in _cfgs(name, backbone))
)
__all__ = ["default_cfgs", *default_cfgs]

for _name in MODELS:
    # timm warns about a name that is registered twice, as when this module is reloaded.
    if not is_model(_name):
        globals()[_name] = register_model(_entrypoint(_name, *MODELS[_name]))
