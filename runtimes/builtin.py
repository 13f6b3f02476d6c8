"""The built-in runtimes as data."""

from __future__ import annotations

from featuretap.specs import RuntimeSpec

RUNTIMES = (
    RuntimeSpec(
        "onnxruntime",
        factory="featuretap.runtimes.onnx_runtime:compile_onnx",
        modules=("onnxruntime", "onnx", "onnxscript"),
        requires="featuretap[onnxruntime]",
        opens={".onnx": "featuretap.runtimes.onnx_runtime:open_onnx"},
        description="ONNX Runtime, on the CPU",
    ),
    RuntimeSpec(
        "openvino",
        factory="featuretap.runtimes.openvino_runtime:compile_openvino",
        modules=("openvino",),
        requires="featuretap[openvino]",
        opens=dict.fromkeys((".xml", ".onnx"), "featuretap.runtimes.openvino_runtime:open_openvino"),
        description="OpenVINO, on the CPU",
    ),
    RuntimeSpec(
        "inductor",
        factory="featuretap.runtimes.torch_runtimes:compile_inductor",
        description="torch.compile, which needs a C++ compiler",
    ),
    RuntimeSpec(
        "aot",
        factory="featuretap.runtimes.torch_runtimes:compile_aot",
        opens={".pt2": "featuretap.runtimes.torch_runtimes:open_aot"},
        description="AOTInductor, compiled ahead of time, which needs a C++ compiler",
    ),
)
