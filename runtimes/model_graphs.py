"""The ONNX graphs of models: written from the spec, or traced by PyTorch where that has no nodes."""

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
"""Time after which tracing for images of any size is given up. Usual networks take a third of it; padding that depends
on the size, as TensorFlow's does, can take more than ten minutes."""

Made = TypeVar("Made")


def graph_of(model: Exportable, *, intermediate: bool = False) -> onnx.ModelProto:
    """Return a model as ONNX: input "image", outputs by the names of its signature.

    Args:
        model: on the CPU, in float32.
        intermediate: whether a detector's predictions before the selection of boxes are outputs too.

    Raises:
        NodesError: it is not to be traced, and a part of it has no nodes.
        ExportError: it cannot be traced.
    """
    return _trace(model) if model.traced else write_from_spec(model, intermediate=intermediate)


def open_graph(model: Exportable, graph: onnx.ModelProto, threads: int | None = None) -> Opened:
    """Open a graph with the runtime of the model; `threads` are PyTorch's by default."""
    options = precision_option(model.precision)
    opened: Opened = load(model.session)(
        graph.SerializeToString(), threads=threads or torch.get_num_threads(), **options
    )
    return opened


class DifferenceError(ExportError):
    """What a runtime computes differs from the model."""


def written_or_traced(model: Exportable, make: Callable[[Exportable], Made]) -> Made:
    """Return what `make` makes of a model by the graph that is written from its spec, or else by the traced one.

    A model is traced where its spec has no nodes, or where they compute something else, since it was changed after it
    was built. Detectors are not traced for batches of any size.

    Raises:
        ExportError: `make` raised it for the traced model too.
    """
    if model.detects:
        return make(model)
    if model.session:
        try:
            return make(model)
        except NodesError as reason:
            logger.warning("%s: %s; PyTorch traces it, which takes longer", model.label, reason)
        except DifferenceError as difference:
            logger.warning("%s; PyTorch traces the model, which was changed after it was built", difference)
    return make(replace(model, traced=True))


def write_from_spec(model: Exportable, *, intermediate: bool = False) -> onnx.ModelProto:
    """Return a model as ONNX from its spec and its tensors; arguments as for `graph_of`.

    Raises:
        NodesError: a part of it has no nodes.
    """
    description, signature = model.description, model.signature
    spec = spec_of(description)
    if spec is None:
        raise NodesError("its description has no spec")

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
    # The exporter notes for each node the path of its source code on this machine.
    for noted in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, proto.graph, *proto.functions):
        del noted.metadata_props[:]
    return proto


class _OutOfTimeError(BaseException):
    """Raised inside the tracing; PyTorch catches what derives from Exception."""


@contextmanager
def _time_limit(model: Exportable) -> Iterator[None]:
    """Raise an `ExportError` in place of what takes longer than `TRACING_SECONDS`, if its sizes are free."""
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
            f"cannot export {model.label} for images of any size: tracing it took over {TRACING_SECONDS} s; give the "
            "one size that it is for, such as size=(224, 224)"
        ) from None
    finally:
        timer.cancel()
