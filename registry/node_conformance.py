"""Conformance check of the ONNX nodes of layers and heads. Needs onnx and onnxruntime."""

from dataclasses import replace
from textwrap import shorten

from featuretap.registry.conformance import Trial
from featuretap.runtimes.exportable import prepare_model
from featuretap.runtimes.model_graphs import open_graph, write_from_spec
from featuretap.runtimes.torch_sessions import as_tensors
from featuretap.runtimes.verification import verify_outputs
from featuretap.specs import ModelSpec
from featuretap.specs.head import backbone_of
from featuretap.support.errors import SpecError
from featuretap.support.text import error_line

SESSION = "featuretap.runtimes.onnx_runtime:open_session"


def check_nodes(trial: Trial) -> None:
    """Check in ONNX Runtime that the nodes of a model compute the same as its modules.

    A model passes if its head or one of its layers does not define nodes, because PyTorch then traces the model.

    Args:
        trial: the module under test.

    Raises:
        SpecError: the nodes cannot be written or run, or an output differs.
    """
    blocks = backbone_of(trial.spec).blocks
    named = [getattr(layer, "nodes", "") for block in blocks for layer in block.layers]
    if isinstance(trial.spec, ModelSpec):
        named.append(trial.spec.head.nodes)
    if not (blocks and all(named)):
        return
    try:
        model = replace(prepare_model(trial.module, trial.size), session=SESSION)
        verify_outputs(model, as_tensors(open_graph(model, write_from_spec(model))))
    except Exception as error:
        reason = shorten(error_line(error), 300, placeholder=" …")
        raise SpecError(f"{trial.label} has nodes that do not compute what its module does ({reason})") from error
