"""Build a reduced tail, which halves the channels after C4 for detectors, from the weights of the full network.

C1 to C4 are equal to those of the full network. C5 keeps the stronger half of its channels and must be fine-tuned.
"""

import torch
from PIL import Image
from skimage import data

from featuretap import registry

for head in ({}, {"head": "ssdlite", "num_classes": 21}):
    for reduced_tail in (False, True):
        spec = registry.spec("mobilenet_v2", features_only=not head, reduced_tail=reduced_tail, **head)
        print(
            f"{head.get('head', 'C1 to C5'):<8} {'reduced' if reduced_tail else 'full':<7} "
            f"{spec.parameters:>9,} parameters {spec.macs(320, 320):>13,} multiply-adds"
        )

full = registry.build("mobilenet_v2", features_only=True, pretrained=True).eval()
reduced = registry.build("mobilenet_v2", features_only=True, pretrained=True, reduced_tail=True).eval()

image = registry.transforms(full)(Image.fromarray(data.chelsea()))[None]
with torch.inference_mode():
    before, after = full(image), reduced(image)
for name in before:
    result = "equal" if torch.equal(before[name], after[name]) else "needs fine-tuning"
    print(f"{name}: {before[name].shape[1]} channels, reduced to {after[name].shape[1]}: {result}")
