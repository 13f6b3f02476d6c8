"""Export a backbone to ONNX in three lines, and run the file in ONNX Runtime without featuretap."""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from featuretap import registry

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "features.onnx"

    backbone = registry.build("mobilenet_v3_small", features_only=True, taps=("C2", "C3", "C3.expansion")).eval()
    registry.export(backbone, file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

images = np.random.default_rng(0).random((2, 3, 97, 161), dtype=np.float32)  # any number of images, any size
names = [output.name for output in session.get_outputs()]
maps = dict(zip(names, session.run(names, {"image": images}), strict=True))

metadata = session.get_modelmeta().custom_metadata_map
print(metadata["featuretap.name"], json.loads(metadata["featuretap.taps"]))
with torch.inference_mode():
    expected = backbone(torch.from_numpy(images))
for name, feature in maps.items():
    reference = expected[name].numpy()
    difference = abs(feature - reference).max() / abs(reference).max()
    print(f"{name} {feature.shape}: maximum difference {difference:.1e} of the largest value")
