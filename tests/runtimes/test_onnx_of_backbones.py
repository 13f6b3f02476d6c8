"""A backbone exported to ONNX returns the same maps under the names of its taps."""

import warnings
from pathlib import Path

import onnxruntime
import torch
from support.tables import EVERY_ROW

from featuretap.registry import Registry


def test_onnx_outputs_are_named_after_the_taps(registry: Registry, tmp_path: Path) -> None:
    taps = ("C4.expansion", "C3.first", "C3.depthwise", "C1", "C5")
    backbone, images = registry.build(EVERY_ROW, features_only=True, taps=taps).eval(), torch.randn(1, 3, 64, 64)
    with warnings.catch_warnings():
        # The exporter warns of its own internals.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            backbone,
            (images,),
            tmp_path / "model.onnx",
            input_names=["image"],
            output_names=list(backbone.taps),
            dynamo=True,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"image": images.numpy()}), strict=True))
    expected = backbone(images)
    assert list(found) == list(expected)
    for name, values in expected.items():
        bound = 1e-5 * values.abs().max().item()
        torch.testing.assert_close(torch.from_numpy(found[name]), values, rtol=0, atol=bound)
