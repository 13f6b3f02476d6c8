"""Files exported by earlier versions still open and return the same outputs as the model.

`tests/support/write_committed_files.py` wrote the files and recorded the expected values.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.committed_files import assert_close, image, recorded, summary

from featuretap.registry import Registry

DATA = Path(__file__).parent / "data"
VALUES = json.loads((DATA / "values.json").read_text())

READERS: dict[str, Callable[..., torch.nn.Module]] = {
    "backbone.pt2": lambda path, extra: torch.export.load(path, extra_files=extra).module(),
    "backbone.torchscript": lambda path, extra: torch.jit.load(path, _extra_files=extra),
}


@pytest.mark.parametrize(
    ("file", "runtime"),
    [("backbone.onnx", "onnxruntime"), ("backbone.onnx", "openvino"), ("backbone.xml", "openvino")],
)
def test_a_committed_file_opens_as_the_exported_model(registry: Registry, file: str, runtime: str) -> None:
    compiled = registry.compile(DATA / file, runtime)
    assert compiled.description.name == "mobilenet_v1"
    assert dict(compiled.description.options) == {"width": 0.05, "reduced_tail": True}
    taps = [(address, tap.channels, tap.stride) for address, tap in compiled.taps.items()]
    assert taps == [("C2", 8, 4), ("C1.first", 8, 2)]
    assert_close(recorded(compiled), VALUES["backbone"], 1e-4)


@pytest.mark.parametrize("file", READERS)
@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
def test_a_committed_pytorch_file_opens_without_featuretap(file: str) -> None:
    extra = {"featuretap.json": ""}
    program = READERS[file](DATA / file, extra)
    with torch.no_grad():
        maps = program(image())
    assert_close({tap: summary(values) for tap, values in maps.items()}, VALUES["backbone"], 1e-4)
    metadata = json.loads(extra["featuretap.json"])
    assert json.loads(metadata["featuretap.taps"]) == ["C2", "C1.first"]


def test_the_committed_quantized_file_opens_as_the_exported_model(registry: Registry) -> None:
    compiled = registry.compile(DATA / "quantized.onnx", threads=1)
    # The model's order, not the order of the keys in the metadata.
    assert (compiled.description.name, [*compiled.taps]) == ("mobilenet_v1", ["C2", "C1.first"])
    # On other processors, 8-bit integer kernels may round to the neighboring step.
    assert_close(recorded(compiled, image(32)), VALUES["quantized"], 3e-2)
