"""Saving a model that a library's layout cannot represent fails with an error that names the obstacle."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from featuretap.backbones.mobilenet_v2 import V2
from featuretap.backbones.mobilenet_v3 import LARGE
from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.specs.variants import widened


class OtherNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "mobilenet_v3_large",
        {"reduced_tail": True},
        "timm",
        "cannot save 'mobilenet_v3_large' with reduced_tail in the layout 'timm', which does not have this network; "
        "use the layout 'featuretap'",
    ),
    (
        "mobilenet_v3_large_075",
        {},
        "torchvision",
        "cannot save 'mobilenet_v3_large_075' in the layout 'torchvision', which does not have this network; "
        "use the layout 'featuretap'",
    ),
    (
        "mobilenet_v2",
        {"output_stride": 16, "dilate_entry": True},
        "timm",
        "cannot save 'mobilenet_v2' with dilate_entry, output_stride=16 in the layout 'timm', which does not have this "
        "network; "
        "use the layout 'featuretap'",
    ),
    (
        "mobilenet_v3_large",
        {"output_stride": 16},
        "torchvision",
        "cannot save 'mobilenet_v3_large' with output_stride=16 in the layout 'torchvision', which does not have this "
        "network; "
        "use the layout 'featuretap'",
    ),
    *(
        (
            "mobilenet_v3_large",
            {"output_stride": output_stride},
            "timm",
            f"cannot save 'mobilenet_v3_large' with output_stride={output_stride} in the layout 'timm', which has this "
            "network for features only; use the layout 'featuretap'",
        )
        for output_stride in (16, 8)
    ),
    (
        "mobilenet_v2",
        {"taps": ("C4",)},
        "timm",
        "cannot save 'mobilenet_v2' in the layout 'timm', whose classifiers read C5, not C4; use the layout "
        "'featuretap'",
    ),
    (
        "mobilenet_v2",
        {"in_channels": 1},
        "torchvision",
        "cannot save 'mobilenet_v2' with in_channels=1 in the layout 'torchvision', which does not have this network; "
        "use the layout 'featuretap'",
    ),
    (
        "mobilenet_v2",
        {"norm": OtherNorm},
        "torchvision",
        "cannot save 'mobilenet_v2' with norm='a function that makes OtherNorm' in the layout 'torchvision', whose "
        "batch norms cannot represent norm=a function that makes OtherNorm; use the layout 'featuretap'",
    ),
    (
        "mobilenet_v3_small",
        {"norm": lambda channels: nn.BatchNorm2d(channels, affine=False)},
        "torchvision",
        "cannot save 'mobilenet_v3_small' with norm='a function that makes BatchNorm2d' in the layout 'torchvision', "
        "whose batch norms cannot represent norm=a function that makes BatchNorm2d; use the layout 'featuretap'",
    ),
    (
        "mobilenet_v3_small_050",
        {},
        "timm",
        "cannot save 'mobilenet_v3_small_050' in the layout 'timm', which does not have this network; use the layout "
        "'featuretap'",
    ),
    (
        "mobilenet_v1",
        {},
        "torchvision",
        "cannot save 'mobilenet_v1' in the layout 'torchvision': 'mobilenet_v1' does not support the layout "
        "'torchvision'; it supports featuretap, timm, tensorflow",
    ),
    (
        "mobilenet_v3_large_minimalistic",
        {},
        "timm",
        "cannot save 'mobilenet_v3_large_minimalistic' in the layout 'timm', which does not have this network; use the "
        "layout 'featuretap'",
    ),
    (
        "mobilenet_v2",
        {"norm": lambda channels: nn.GroupNorm(8, channels)},
        "timm",
        "cannot save 'mobilenet_v2' with norm='a function that makes GroupNorm' in the layout 'timm', whose batch "
        "norms cannot represent norm=a function that makes GroupNorm; use the layout 'featuretap'",
    ),
]


@pytest.mark.parametrize(("name", "options", "layout", "message"), REFUSED)
def test_layouts_that_cannot_hold_a_model_refuse_it_by_name(
    registry: Registry, tmp_path: Path, name: str, options: dict[str, Any], layout: str, message: str
) -> None:
    with pytest.raises(WeightsError) as error:
        registry.save(registry.build(name, **options), tmp_path / "file.safetensors", layout)
    assert str(error.value) == message
    assert list(tmp_path.iterdir()) == []


def test_networks_that_a_library_lacks_have_no_architecture_there() -> None:
    from featuretap.backbones.layouts import timm as timms
    from featuretap.backbones.layouts import torchvision as torchvisions

    assert torchvisions.mobilenet_v2(widened(V2, 0.62)).arguments == {"width_mult": 0.62}
    assert torchvisions.mobilenet_v3(widened(LARGE, 0.75)).architecture == ""
    assert timms.mobilenet_v2(widened(V2, 0.62)).architecture == ""
