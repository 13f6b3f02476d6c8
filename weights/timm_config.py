"""The `config.json` of timm's layout, from which `timm.create_model("local-dir:…")` builds the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import floor, nextafter
from pathlib import Path
from typing import Any

from featuretap.specs import BackboneSpec
from featuretap.specs.description import Description
from featuretap.specs.layers import SAME, SYMMETRIC
from featuretap.specs.layout import Layout
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import WeightsError
from featuretap.weights.files import CONFIG, config_beside

logger = logging.getLogger("featuretap")

SIZE = 224
"""Image size in pixels for models without a crop."""

LOGITS = "head.logits.weight"

HARMLESS = {"drop_rate", "drop_path_rate", "in_chans", "num_classes", "features_only", "out_indices", "global_pool"}
"""Arguments of timm's networks that do not affect maps, or that follow from the shapes of the tensors."""

KNOWN: Mapping[str, Callable[[Any], bool]] = {
    "output_stride": lambda value: value in (8, 16, 32),
    "pad_type": lambda value: value in ("", SAME),
    "bn_eps": lambda value: isinstance(value, float) and 0 <= value < 1,
}


def timm_config(description: Description, backbone: BackboneSpec, layout: Layout, features: int) -> str:
    """Return the text of a `config.json` for timm.

    Args:
        description: description of the model.
        backbone: spec of the backbone.
        layout: timm's layout of the model.
        features: number of channels of the last map or of the hidden layer.

    Returns:
        The JSON text.

    Raises:
        WeightsError: timm's feature extractor does not return one of the taps of a bare backbone.
    """
    preprocessing, classes = description.preprocessing.for_images("cropped"), description.num_classes or 0
    crop = preprocessing.crop or SIZE
    config = {
        "architecture": layout.architecture,
        "num_classes": classes,
        "num_features": features,
        "global_pool": "avg",
        "model_args": {**layout.arguments, **_as_features(description, backbone, layout)},
        "pretrained_cfg": {
            "tag": "",
            "custom_load": False,
            "input_size": [backbone.in_channels, *(layout.image_size or (crop, crop))],
            "fixed_input_size": bool(layout.image_size),
            "interpolation": preprocessing.interpolation,
            "crop_pct": _crop_fraction(crop, preprocessing.resize or crop),
            "crop_mode": "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": classes,
            "pool_size": None,
            "first_conv": layout.first_conv,
            "classifier": layout.names.get(LOGITS, LOGITS).removesuffix(".weight"),
        },
    }
    if not isinstance(description.classes, str):
        config["label_names"] = list(description.classes)
    return json.dumps(config, indent=2) + "\n"


def _as_features(description: Description, backbone: BackboneSpec, layout: Layout) -> dict[str, Any]:
    """Return timm's arguments for a bare backbone with the same maps, in the order of the network."""
    if description.head:
        return {}
    numbered = layout.feature_taps or backbone.levels
    # Only backbones with tables have several addresses for one map.
    paths = {address: path or address for address, path in backbone.addresses.items()}
    indices = {paths[address]: index for index, address in enumerate(numbered)}
    unnumbered = [address for address in backbone.taps if paths[address] not in indices]
    if unnumbered:
        raise WeightsError(
            f"cannot save the taps {', '.join(unnumbered)} in the layout 'timm', which has no index for them; build "
            f"the backbone with taps among {', '.join(numbered)}"
        )
    return {"features_only": True, "out_indices": sorted({indices[paths[address]] for address in backbone.taps})}


@dataclass(frozen=True)
class TimmConfig:
    """Settings in a `config.json` of timm.

    Args:
        architecture: timm's name of the network, or "" if the file is not timm's.
        output_stride: output stride of the network.
        norm_eps: epsilon of the batch norms, or None for timm's default.
        preprocessing: preprocessing of the images, or None if it is missing or not supported.
        classes: names of the classes; empty if the file does not list them.
        padding: padding of the network, or None if the file does not name the network.
    """

    architecture: str = ""
    output_stride: int = 32
    norm_eps: float | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] = ()
    padding: str | None = None


def read_timm_config(file: Path) -> TimmConfig:
    """Return timm's settings next to a weights file, or default values if there are none.

    Args:
        file: path of the weights file.

    Returns:
        The settings.

    Raises:
        WeightsError: the file is not a JSON object, or has unsupported arguments of the network.
    """
    path = file.with_name(CONFIG)
    config = config_beside(file) or {}
    arguments = config.get("model_args") or {}
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not isinstance(arguments, dict):
        return TimmConfig()
    for name, value in arguments.items():
        if name not in HARMLESS and not (name in KNOWN and KNOWN[name](value)):
            raise WeightsError(
                f"{str(path)!r} builds {architecture!r} with {name}={value!r}, which is not supported; load the model "
                "with timm"
            )
    pretrained = config.get("pretrained_cfg", config)
    return TimmConfig(
        architecture,
        arguments.get("output_stride", 32),
        arguments.get("bn_eps"),
        preprocessing_of(path, pretrained),
        _label_names(config, pretrained),
        SAME if arguments.get("pad_type", padding_by_name(architecture)) == SAME else SYMMETRIC,
    )


def padding_by_name(name: str) -> str | None:
    """Return the padding of timm's MobileNetV3 with this `name`, or of a file whose name begins with it. None for other
    names.
    """
    return SAME if name.startswith("tf_") else SYMMETRIC if name.startswith("mobilenetv3_") else None


def _label_names(*tables: Any) -> tuple[str, ...]:
    """Return the names of the classes from the first table that lists them. timm writes them into either table."""
    for table in tables:
        names = table.get("label_names") if isinstance(table, dict) else None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
    return ()


def preprocessing_of(origin: object, config: Any) -> Preprocessing | None:
    """Return the preprocessing of a pretrained configuration of timm. Unsupported preprocessing gives a warning and
    None.

    Args:
        origin: source of the configuration, for the warning.
        config: the configuration.

    Returns:
        The preprocessing, or None.
    """
    try:
        if config.get("crop_mode", "center") != "center":
            raise ValueError(f"crop_mode is {config['crop_mode']!r}")
        crop = config["input_size"][-1]
        resize = floor(crop / config.get("crop_pct", 1.0))
        mean, std = tuple(config["mean"]), tuple(config["std"])
        return Preprocessing(resize, crop, mean, std, config.get("interpolation", "bilinear"))
    except (KeyError, IndexError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        logger.warning("%s has an unsupported preprocessing (%s); using the ImageNet default", origin, error)
        return None


def _crop_fraction(crop: int, resize: int) -> float:
    """Return the crop as a fraction of the resized image. timm divides by this fraction and rounds down."""
    fraction = crop / resize
    return fraction if floor(crop / fraction) == resize else nextafter(fraction, 0.0)
