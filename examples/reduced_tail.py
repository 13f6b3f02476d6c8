"""A reduced tail: half the channels behind C4, as detectors use it, filled from weights of the whole network.

C1 to C4 stay the file's. C5 keeps the stronger half of its channels, reads half of what it read, and is to be
fine-tuned.
"""

import torch
from PIL import Image
from skimage import data

from featuretap import registry

for what in ({}, {"head": "ssdlite", "num_classes": 21}):
    for reduced_tail in (False, True):
        spec = registry.spec("mobilenet_v2", features_only=not what, reduced_tail=reduced_tail, **what)
        print(
            f"{what.get('head', 'C1 to C5'):<8} {'reduced' if reduced_tail else 'whole':<7} "
            f"{spec.parameters:>9,} parameters {spec.macs(320, 320):>13,} multiply-adds"
        )

whole = registry.build("mobilenet_v2", features_only=True, pretrained=True).eval()
reduced = registry.build("mobilenet_v2", features_only=True, pretrained=True, reduced_tail=True).eval()

image = registry.transforms(whole)(Image.fromarray(data.chelsea()))[None]
with torch.inference_mode():
    before, after = whole(image), reduced(image)
for name in before:
    same = "equal" if torch.equal(before[name], after[name]) else "to be fine-tuned"
    print(f"{name}: {before[name].shape[1]} channels, then {after[name].shape[1]}: {same}")
