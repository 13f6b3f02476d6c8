"""The `config.json` beside a file in timm's layout, by which `timm.create_model("local-dir:…")` builds. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import floor, nextafter
from typing import Any

from featuretap.registry.description import Description
from featuretap.registry.errors import OptionError
from featuretap.registry.layout import Layout
from featuretap.registry.preprocessing import Preprocessing
from featuretap.registry.specs import BackboneSpec

__all__ = ["preprocessing_in", "timm_config"]


def timm_config(description: Description, backbone: BackboneSpec, layout: Layout, features: int) -> str:
    """Return the text of a `config.json`.

    Args:
        description: of the model.
        backbone: as it was built.
        layout: timm's, for that backbone.
        features: channels of the last feature map or hidden layer, which timm states for people.
    """
    prepared, classes = description.preprocessing, description.num_classes or 0
    config = {
        "architecture": layout.architecture,
        "num_classes": classes,
        "num_features": features,
        "global_pool": "avg",
        "model_args": dict(layout.arguments),
        "pretrained_cfg": {
            "tag": "",
            "custom_load": False,
            "input_size": [backbone.in_channels, prepared.crop, prepared.crop],
            "fixed_input_size": False,
            "interpolation": prepared.interpolation,
            "crop_pct": _crop_share(prepared),
            "crop_mode": "center",
            "mean": list(prepared.mean),
            "std": list(prepared.std),
            "num_classes": classes,
            "pool_size": None,
            "first_conv": "conv_stem",
            "classifier": "classifier",
        },
    }
    return json.dumps(config, indent=2) + "\n"


def preprocessing_in(config: Mapping[str, Any]) -> Preprocessing | None:
    """Return the preprocessing that a `config.json` states, or None where it states none that is known here."""
    stated = config.get("pretrained_cfg", config)
    try:
        crop = stated["input_size"][-1]
        return Preprocessing(
            floor(crop / stated.get("crop_pct", 1.0)),
            crop,
            tuple(stated["mean"]),
            tuple(stated["std"]),
            stated.get("interpolation", "bilinear"),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ArithmeticError, OptionError):
        return None


def _crop_share(prepared: Preprocessing) -> float:
    """Return the share of the resized image that the crop is; timm floors the quotient to resize."""
    share = prepared.crop / prepared.resize
    return share if floor(prepared.crop / share) == prepared.resize else nextafter(share, 0.0)
