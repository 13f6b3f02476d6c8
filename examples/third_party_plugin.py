"""Write a plugin in one file: a table of the network is enough for taps, counts, options, heads and weights files.

An installed package is found through its entry point: `featuretap new-plugin NAME` writes such a package, and
`examples/featuretap-mobilenet-v4` is a complete one. To try a table, this example passes its own module to a registry.
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
        (Bneck(3, 48, 24, RE), Bneck(3, 72, 24, RE)),  # the first row has stride 2, the last row is the tap
        (Bneck(5, 72, 40, RE, SE), Bneck(5, 120, 40, RE, SE)),
        (Bneck(3, 160, 64, HS), Bneck(3, 192, 64, HS)),
        (Bneck(5, 256, 96, HS, SE), Conv(1, 384, HS)),
    ),
)


@hookimpl
def featuretap_backbones() -> list[BackboneSpec]:
    """Return the backbones of this plugin."""
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
        loaded = registry.load(path).eval()
    image = torch.rand(3, 240, 320)
    equal = torch.equal(detector([image])[0]["boxes"], loaded([image])[0]["boxes"])
    print("the loaded detector finds the same boxes:", equal)
