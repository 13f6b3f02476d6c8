"""A plugin in one file: a network as a table, which has taps, counts, options, heads and files without another line.

An installed distribution is found by its entry point (`featuretap new-plugin NAME` writes one, and
`examples/featuretap-mobilenet-v4` is a whole one). Here the module is given to a registry by hand, which is enough to
try a table.
"""

import sys
import tempfile
from pathlib import Path

import torch

from featuretap.registry import Registry
from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.specs import HS, RE, SE, BackboneSpec, Bneck, Conv

TINYNET = BackboneSpec(
    "tinynet",
    stages=(  # kernel, expanded channels, output channels, activation, squeeze-excite
        (Conv(3, 16, HS),),
        (Bneck(3, 48, 24, RE), Bneck(3, 72, 24, RE)),  # a stage's first row strides, its last row is the tap
        (Bneck(5, 72, 40, RE, SE), Bneck(5, 120, 40, RE, SE)),
        (Bneck(3, 160, 64, HS), Bneck(3, 192, 64, HS)),
        (Bneck(5, 256, 96, HS, SE), Conv(1, 384, HS)),
    ),
)


@hookimpl
def featuretap_backbones() -> list[BackboneSpec]:
    """Return what this plugin adds."""
    return [TINYNET]


if __name__ == "__main__":
    registry = Registry(plugins=[sys.modules[__name__]])
    print(registry.list_backbones("tiny*"))

    spec = registry.spec("tinynet", width=0.5)
    print(f"{spec.parameters:,} parameters, {spec.macs(224, 224):,} multiply-adds")

    backbone = registry.build("tinynet", features_only=True, taps=("C3", "C5.bottleneck"), output_stride=16)
    for name, feature in backbone(torch.rand(1, 3, 97, 161)).items():
        print(name, tuple(feature.shape))

    detector = registry.build("tinynet", head="ssdlite", num_classes=3).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = registry.save(detector, Path(folder) / "tiny.safetensors")
        again = registry.load(path).eval()
    image = torch.rand(3, 240, 320)
    same = torch.equal(detector([image])[0]["boxes"], again([image])[0]["boxes"])
    print("the detector out of the file finds the same:", same)
