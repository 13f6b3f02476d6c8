"""A model as ONNX: input "image", outputs by the names of the taps, our description in the metadata."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from featuretap.runtimes.exportable import Exportable
from featuretap.support.errors import ExportError
from featuretap.support.extras import check_extra

if TYPE_CHECKING:
    import onnx

__all__ = ["IMAGE", "PACKAGES", "onnx_model", "quiet"]

IMAGE = "image"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def onnx_model(model: Exportable, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Return a model as ONNX.

    Args:
        model: what is exported.
        metadata: strings that the file holds, such as what `stated` returns.

    Raises:
        MissingExtraError: packages for ONNX are not installed.
        ExportError: the model cannot be exported.
    """
    check_extra("exporting to ONNX", "onnxruntime", PACKAGES)
    program = model.program()
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                input_names=[IMAGE],
                output_names=list(model.signature.outputs),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(model.refusal(error)) from error
    assert exported is not None
    proto: onnx.ModelProto = exported.model_proto
    # The exporter notes for each node where in whose folders its code stands.
    for noted in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, proto.graph, *proto.functions):
        del noted.metadata_props[:]
    for key, value in sorted((metadata or {}).items()):
        proto.metadata_props.add(key=key, value=value)
    return proto


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to itself what exporters say of their own internals."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
