"""The runtimes that featuretap knows by itself, as data. No torch."""

from __future__ import annotations

from featuretap.specs import RuntimeSpec

__all__ = ["RUNTIMES"]

RUNTIMES = (
    RuntimeSpec(
        "onnxruntime",
        factory="featuretap.runtimes.on_onnxruntime:compiled",
        modules=("onnxruntime", "onnx", "onnxscript"),
        requires="featuretap[onnxruntime]",
        opens={".onnx": "featuretap.runtimes.on_onnxruntime:opened"},
        description="ONNX Runtime, on the CPU",
    ),
    RuntimeSpec(
        "openvino",
        factory="featuretap.runtimes.on_openvino:compiled",
        modules=("openvino",),
        requires="featuretap[openvino]",
        opens={".xml": "featuretap.runtimes.on_openvino:opened", ".onnx": "featuretap.runtimes.on_openvino:opened"},
        description="OpenVINO, on the CPU",
    ),
    RuntimeSpec(
        "inductor",
        factory="featuretap.runtimes.on_inductor:compiled",
        description="torch.compile, which needs a C++ compiler",
    ),
    RuntimeSpec(
        "aot",
        factory="featuretap.runtimes.on_aot:compiled",
        opens={".pt2": "featuretap.runtimes.on_aot:opened"},
        description="AOTInductor, compiled ahead of time, which needs a C++ compiler",
    ),
)
