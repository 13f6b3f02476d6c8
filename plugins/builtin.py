"""The built-in plugin: backbones and weights of `registry.toml`, heads, and runtimes."""

from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path

from featuretap.catalogue.files import PluginCatalogue, load_catalogue
from featuretap.catalogue.hookspecs import WeightsEntry, hookimpl
from featuretap.heads.classification import CLASSIFICATION
from featuretap.heads.detection import FASTER_RCNN, FCOS, MASK_RCNN, RETINANET, SSD, SSDLITE
from featuretap.heads.fpn import FPN
from featuretap.heads.segmentation import DEEPLAB_V3, LRASPP
from featuretap.specs import BackboneSpec, HeadSpec, RuntimeSpec
from featuretap.specs.runtime import PRECISIONS

RUNTIMES = (
    RuntimeSpec(
        "onnxruntime",
        factory="featuretap.runtimes.torch_sessions:compile_graph",
        session="featuretap.runtimes.onnx_runtime:open_session",
        modules=("onnxruntime", "onnx"),
        requires="featuretap[onnxruntime]",
        opens={".onnx": "featuretap.runtimes.torch_sessions:open_onnx"},
        description="ONNX Runtime, on the CPU",
        quick=True,
    ),
    RuntimeSpec(
        "openvino",
        factory="featuretap.runtimes.torch_sessions:compile_graph",
        session="featuretap.runtimes.openvino_runtime:open_session",
        modules=("openvino", "onnx"),
        requires="featuretap[openvino]",
        opens=dict.fromkeys((".xml", ".onnx"), "featuretap.runtimes.torch_sessions:open_openvino"),
        description="OpenVINO, on the CPU",
        precisions=PRECISIONS,
        quick=True,
    ),
    RuntimeSpec(
        "fused",
        factory="featuretap.runtimes.torch_runtimes:compile_fused",
        description="PyTorch without a compiler, with folded batch norms and in channels_last",
        precisions=PRECISIONS,
        quick=True,
    ),
    RuntimeSpec(
        "inductor",
        factory="featuretap.runtimes.torch_runtimes:compile_inductor",
        description="torch.compile, which needs a C++ compiler",
        precisions=PRECISIONS,
    ),
    RuntimeSpec(
        "aot",
        factory="featuretap.runtimes.torch_runtimes:compile_aot",
        opens={".pt2": "featuretap.runtimes.torch_runtimes:open_aot"},
        description="AOTInductor, compiled ahead of time, which needs a C++ compiler",
    ),
)


@cache
def _catalogue() -> PluginCatalogue:
    return load_catalogue(Path(str(files("featuretap") / "registry.toml")))


@hookimpl
def featuretap_backbones() -> Iterable[BackboneSpec]:
    """Return the MobileNets."""
    return _catalogue().backbones


@hookimpl
def featuretap_heads() -> Iterable[HeadSpec]:
    """Return the built-in heads."""
    return (CLASSIFICATION, FPN, LRASPP, DEEPLAB_V3, SSDLITE, SSD, RETINANET, FCOS, FASTER_RCNN, MASK_RCNN)


@hookimpl
def featuretap_weights() -> Iterable[WeightsEntry]:
    """Return the published weights."""
    return _catalogue().weights


@hookimpl
def featuretap_runtimes() -> Iterable[RuntimeSpec]:
    """Return the built-in runtimes."""
    return RUNTIMES
