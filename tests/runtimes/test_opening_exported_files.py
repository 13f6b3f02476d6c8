"""Errors for exported files that a runtime cannot open."""

from pathlib import Path

import pytest

from featuretap.registry import Registry
from featuretap.registry.errors import ExportError, OptionError


@pytest.mark.parametrize(
    ("name", "content", "runtime", "message"),
    [
        ("a.xml", b"", "onnxruntime", "the runtime 'onnxruntime' does not open .xml files; 'openvino' can"),
        ("a.onnx", b"", "inductor", "'inductor' does not open .onnx files; 'onnxruntime' and 'openvino' can"),
        ("a.engine", b"", "onnxruntime", "does not open .engine files; export the model as .onnx"),
        ("absent.onnx", None, "onnxruntime", "no file '{}'; write one with featuretap export NAME absent.onnx"),
        ("a.onnx", b"no model", "onnxruntime", "'onnxruntime' cannot open '{}' ("),
        ("a.xml", b"<no", "openvino", "'openvino' cannot open '{}' ("),
        ("a.pt2", b"PK", "aot", "'aot' cannot open '{}' ("),
    ],
)
def test_files_that_a_runtime_cannot_open_are_refused(
    registry: Registry, tmp_path: Path, name: str, content: bytes | None, runtime: str, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((OptionError, ExportError)) as error:
        registry.compile(path, runtime)
    assert message.format(path) in str(error.value)


def test_a_file_of_somebody_elses_says_nothing_of_its_model(registry: Registry, tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    pixels = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 4])
    same = helper.make_tensor_value_info("same", TensorProto.FLOAT, [1, 3, 4, 4])
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["same"])], "relu", [pixels], [same])
    save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "a.onnx")
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(ExportError, match=r"a.onnx' has no featuretap metadata; open it with its runtime's own"):
            registry.compile(tmp_path / "a.onnx", runtime)
    with pytest.raises(OptionError, match=r"^size and batch cannot be applied to an exported file; pass them to"):
        registry.compile(tmp_path / "a.onnx", batch=1)
