"""Use feature maps C3 to C5 in torchvision's RetinaNet: a training step and a prediction.

`as_torchvision` adapts a pyramid to the backbone interface of torchvision's detectors. `output_shape` returns channels
and strides in the format of Detectron2.
"""

import torch
from skimage import data
from torchvision.models.detection import RetinaNet

from featuretap import registry
from featuretap.adapters.torchvision import as_torchvision, output_shape

torch.manual_seed(0)
pyramid = registry.build(
    "mobilenet_v2",
    head="fpn",
    taps=("C3", "C4", "C5"),
    extra_levels="p6p7",
    pretrained=True,
    freeze_norm=True,  # two images are too few for batch-norm statistics
)
for name, shape in output_shape(pyramid).items():
    print(f"{name}: {shape.channels} channels at stride {shape.stride}")

# One class and the background. After one step all scores are low, so the detector returns its five best boxes.
detector = RetinaNet(
    as_torchvision(pyramid), num_classes=2, min_size=160, max_size=240, score_thresh=0.0, detections_per_img=5
)

photograph = torch.from_numpy(data.chelsea()).permute(2, 0, 1) / 255  # (3, H, W), values from 0 to 1
face = {"boxes": torch.tensor([[118.0, 22.0, 320.0, 230.0]]), "labels": torch.tensor([1])}
nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
images, targets = [photograph, torch.rand(3, 160, 200)], [face, nothing]

optimizer = torch.optim.SGD(detector.parameters(), lr=0.1)
losses = detector.train()(images, targets)
sum(losses.values()).backward()
optimizer.step()
for name, before in losses.items():
    print(f"{name}: {before.item():.3f}, {detector(images, targets)[name].item():.3f} after one step")

with torch.inference_mode():
    (detections,) = detector.eval()([photograph])
print({name: tuple(values.shape) for name, values in detections.items()})
