"""Three lines from a name to ONNX Runtime, which reads the file without featuretap, under the names of the taps."""

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

images = np.random.default_rng(0).random((2, 3, 97, 161), dtype=np.float32)  # any number, any size
names = [output.name for output in session.get_outputs()]
maps = dict(zip(names, session.run(names, {"image": images}), strict=True))

stated = session.get_modelmeta().custom_metadata_map
print(stated["featuretap.name"], json.loads(stated["featuretap.taps"]))
with torch.inference_mode():
    ours = backbone(torch.from_numpy(images))
for name, found in maps.items():
    expected = ours[name].numpy()
    difference = abs(found - expected).max() / abs(expected).max()
    print(f"{name} {found.shape}: greatest difference {difference:.1e} of the largest value")
