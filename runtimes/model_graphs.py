"""ONNX graphs of models, written from the spec or traced by PyTorch."""

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import onnx
import torch

from featuretap.runtimes.exportable import Exportable, quiet_exporters
from featuretap.runtimes.graphs import write_graph
from featuretap.runtimes.precision import precision_option
from featuretap.runtimes.signature import Opened
from featuretap.specs.description import spec_of
from featuretap.specs.graph import IMAGE
from featuretap.support.errors import ExportError, NodesError
from featuretap.support.extras import check_extra
from featuretap.support.import_strings import load
from featuretap.weights.folding import eps_of

logger = logging.getLogger("featuretap")

TRACING_SECONDS = 180
"""Time limit for tracing a model for images of any size. Common networks take a third of it. Padding that depends on
the size, as in TensorFlow's models, can take more than ten minutes."""

Made = TypeVar("Made")


def make_graph(model: Exportable, *, intermediate: bool = False) -> onnx.ModelProto:
    """Return the ONNX graph of a model, with the input "image" and the outputs of its signature.

    Args:
        model: a float32 model on the CPU.
        intermediate: whether to add a detector's predictions before box selection to the outputs.

    Returns:
        The ONNX model.

    Raises:
        NodesError: tracing is off, and a part of the model has no ONNX nodes.
        ExportError: the model cannot be traced.
    """
    return _trace(model) if model.traced else write_from_spec(model, intermediate=intermediate)


def open_graph(model: Exportable, graph: onnx.ModelProto, threads: int | None = None) -> Opened:
    """Open a graph with the model's runtime.

    Args:
        model: the model.
        graph: its ONNX graph.
        threads: number of threads; None for PyTorch's number.

    Returns:
        The opened graph.
    """
    options = precision_option(model.precision)
    opened: Opened = load(model.session)(
        graph.SerializeToString(), threads=threads or torch.get_num_threads(), **options
    )
    return opened


class DifferenceError(ExportError):
    """The outputs of a runtime differ from the model's."""


def write_or_trace(model: Exportable, make: Callable[[Exportable], Made]) -> Made:
    """Call `make` with a model whose graph is written from its spec, and with the traced model if that fails.

    Models are traced if the spec has no ONNX nodes, or if the outputs differ because the model was changed after it was
    built. Detectors are never traced.

    Args:
        model: the model.
        make: compiles or writes the model.

    Returns:
        The return value of `make`.

    Raises:
        ExportError: `make` fails for the traced model too.
    """
    if model.detects:
        return make(model)
    if model.session:
        try:
            return make(model)
        except NodesError as reason:
            logger.warning("%s: %s; tracing it with PyTorch, which takes longer", model.label, reason)
        except DifferenceError as difference:
            logger.warning("%s; tracing the model, which was changed after it was built", difference)
    return make(replace(model, traced=True))


def write_from_spec(model: Exportable, *, intermediate: bool = False) -> onnx.ModelProto:
    """Write a model's graph from its spec and tensors.

    Args:
        model: the model.
        intermediate: whether to add a detector's predictions before box selection to the outputs.

    Returns:
        The ONNX model.

    Raises:
        NodesError: a part of the model has no ONNX nodes.
    """
    description, signature = model.description, model.signature
    spec = spec_of(description)
    if spec is None:
        raise NodesError("the model's description has no spec")

    def native(name: str) -> str:
        return name if spec is description.backbone else name.removeprefix("backbone.")

    return write_graph(
        spec,
        {native(name): tensor.numpy() for name, tensor in model.model.state_dict().items()},
        {native(path): eps for path, eps in eps_of(model.model).items()},
        description.preprocessing,
        size=signature.size,
        batch=signature.batch,
        intermediate=intermediate,
    )


def _trace(model: Exportable) -> onnx.ModelProto:
    check_extra(f"tracing {model.label}", "onnxruntime", ("onnxscript",))
    with _time_limit(model):
        program = model.program()
        with model.export_errors(), quiet_exporters():
            exported = torch.onnx.export(
                program, input_names=[IMAGE], output_names=list(model.signature.outputs), dynamo=True, verbose=False
            )
    assert exported is not None
    proto: onnx.ModelProto = exported.model_proto
    # The exporter records source paths of this machine for each node.
    for noted in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, proto.graph, *proto.functions):
        del noted.metadata_props[:]
    return proto


class _OutOfTimeError(BaseException):
    """Raised inside the tracing. Not an Exception, since PyTorch catches those."""


@contextmanager
def _time_limit(model: Exportable) -> Iterator[None]:
    """Raise an `ExportError` if the code inside takes longer than `TRACING_SECONDS`, unless the image size is fixed."""
    raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc
    thread = ctypes.c_ulong(threading.get_ident())
    timer = threading.Timer(TRACING_SECONDS, raise_in_thread, (thread, ctypes.py_object(_OutOfTimeError)))
    timer.daemon = True
    if not model.signature.size:
        timer.start()
    try:
        yield
    except _OutOfTimeError:
        raise ExportError(
            f"cannot export {model.label} for images of any size: tracing took more than {TRACING_SECONDS} s; set a "
            "fixed size, such as size=(224, 224)"
        ) from None
    finally:
        timer.cancel()
