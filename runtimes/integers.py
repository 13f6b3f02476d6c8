"""A float ONNX model in 8-bit integers, by ONNX Runtime's quantisation.

Why with these settings is measured, and said in docs/quantization.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from featuretap.runtimes.onnx_files import IMAGE

__all__ = ["METHOD", "in_integers"]

METHOD = {
    "format": "QDQ",
    "weights": "int8 per channel, of 7 bits where channels are summed",
    "activations": "uint8",
    "ranges": "means of the smallest and the largest of each image",
}
"""What is done, as files state it."""

OPERATIONS = ("Conv", "Gemm", "Clip", "Relu", "Add")
"""What is computed in integers, and what of activations becomes a part of it."""

EIGHT_BITS = {"axis": 0, "quant_type": QuantType.QInt8, "symmetric": True, "reduce_range": False}


class Reader:
    """Images as the library asks for them, one by one."""

    def __init__(self, images: Iterable[Tensor]) -> None:
        self.images = iter(images)

    def get_next(self) -> Mapping[str, object] | None:
        """Return the inputs of the next call, or None at the end."""
        image = next(self.images, None)
        return None if image is None else {IMAGE: image.numpy()}


def in_integers(model: onnx.ModelProto, images: Iterable[Tensor]) -> onnx.ModelProto:
    """Return a model that computes in 8-bit integers, with the names, free axes and metadata of a float one.

    Args:
        model: as `onnx_model` returns it; it stays as it is.
        images: (1, C, H, W), at least one, whose ranges of activations are those that the integers stand for.
    """
    with TemporaryDirectory(prefix="featuretap-") as folder:
        exported, prepared, made = (Path(folder) / name for name in ("exported", "prepared", "made"))
        onnx.save(model, exported)
        # ONNX Runtime's own optimisation would take HardSwish to pieces.
        quant_pre_process(exported, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            made,
            Reader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATIONS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Pairs of products with 8-bit weights saturate in the 16-bit sums of processors without VNNI.
            reduce_range=True,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                # The mean of all images' ranges, whose extremes would leave few steps to what is common.
                "CalibMovingAverage": True,
                # Logits beyond the range would be cut to one value, and the largest be any of them.
                "OpTypesToExcludeOutputQuantization": ["Gemm"],
                "TensorQuantOverrides": {weights: [EIGHT_BITS] for weights in _depthwise(model)},
            },
        )
        quantised: onnx.ModelProto = onnx.load(made)
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(model.metadata_props)
    return quantised


def _depthwise(model: onnx.ModelProto) -> list[str]:
    """Return the names of the weights of depthwise convolutions, which are summed in 32 bits everywhere."""
    shapes = {constant.name: constant.dims for constant in model.graph.initializer}
    groups = {
        node.input[1]: next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        for node in model.graph.node
        if node.op_type == "Conv"
    }
    return [weights for weights, count in groups.items() if count > 1 and weights in shapes and shapes[weights][1] == 1]
