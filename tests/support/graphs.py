"""ONNX graphs written from model specs, and comparisons of their outputs with the modules' outputs."""

import copy
from functools import cache
from typing import Any

import onnx
import skimage.data
import torch
from support.oracles import with_statistics
from torch import Tensor, nn
from torch.nn.functional import interpolate

from featuretap.runtimes.exportable import prepare_model
from featuretap.runtimes.model_graphs import make_graph
from featuretap.runtimes.onnx_runtime import onnx_session

TOLERANCE = 1e-4
"""Maximum difference, as a fraction of an output's largest value."""

ROUNDING_FACTOR = 8
"""Maximum error of a graph, as a multiple of the module's own in float32, where that exceeds the tolerance."""

VARIANCES = (1e-12, 1e-9, 1e-6, 1e-4, 1e-3)
"""Of channels that are nearly dead."""

SIZE = (96, 128)
"""Height and width of the photographs that statistics are of."""

MEAN, DEVIATION = 0.45, 0.22
"""Of all channels of photographs, about."""


@cache
def photographs() -> tuple[Tensor, ...]:
    """Return four photographs (3, H, W) of different sizes, with values from 0 to 1."""
    arrays = (getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket"))
    return tuple(torch.from_numpy(array).permute(2, 0, 1) / 255 for array in arrays)


def batch_of(number: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Return up to four normalized photographs (N, C, H, W), with repeated channels where C is not 3."""
    images = [interpolate(photograph[None], (height, width), mode="bilinear") for photograph in photographs()[:number]]
    return ((torch.cat(images) - MEAN) / DEVIATION).repeat(1, 2, 1, 1)[:, :channels]


def with_statistics_of_photographs(model: nn.Module, *, nearly_dead: bool = False) -> nn.Module:
    """Give norms random weights and the statistics of photographs, and return the model in evaluation mode.

    With `nearly_dead`, every seventh channel has a running variance from 1e-12 to 1e-3 and a similarly small weight.
    """
    channels = next(model.parameters()).shape[1]
    with_statistics(model, lambda model: model(batch_of(4, *SIZE, channels)), nearly_dead=nearly_dead)
    for norm in model.modules() if nearly_dead else ():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            places = range(0, len(norm.running_var), 7)
            norm.running_var[list(places)] = torch.tensor([VARIANCES[place % len(VARIANCES)] for place in places])
    return model


def write_graph(model: nn.Module, **fixed: Any) -> onnx.ModelProto:
    """Return the graph of a model, written from its spec without tracing and checked by ONNX."""
    proto = make_graph(prepare_model(model, **fixed))
    onnx.checker.check_model(proto, full_check=True)
    assert proto.producer_name == "featuretap"
    return proto


def run_graph(proto: onnx.ModelProto, images: Tensor) -> dict[str, Tensor]:
    """Run a graph in ONNX Runtime and return name → output."""
    session = onnx_session(proto.SerializeToString(), threads=1)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(names, {"image": images.numpy()})), strict=True))


@torch.no_grad()
def outputs_of(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Run a model in evaluation mode and return name → output."""
    returned = model.eval()(images)
    if isinstance(returned, Tensor):
        return {"logits" if model.description.num_classes else "features": returned}
    return dict(returned)


def operators(proto: onnx.ModelProto) -> set[str]:
    """Return the operators of a graph's nodes."""
    return {node.op_type for node in proto.graph.node}


def assert_same_outputs(found: dict[str, Tensor], model: nn.Module, images: Tensor) -> None:
    """Compare a graph's outputs with the module's, or with the module's in float64 where float32 is too inaccurate.

    Subtracting the mean of a nearly dead channel leaves few correct digits, in any order of computation. A deep module
    can then differ from its own float64 values by more than the tolerance.
    """
    expected = outputs_of(model, images)
    forms = {name: (values.shape, values.dtype) for name, values in found.items()}
    assert forms == {name: (values.shape, values.dtype) for name, values in expected.items()}
    assert list(found) == list(expected)
    if all(distance(found[name], values) <= TOLERANCE for name, values in expected.items()):
        return
    exact = outputs_of(copy.deepcopy(model).double(), images.double())
    for name, values in expected.items():
        own = distance(values, exact[name])
        assert distance(found[name], exact[name]) <= max(TOLERANCE, ROUNDING_FACTOR * own), name


def assert_is_computed(model: nn.Module) -> None:
    """Compare a model's graph with the model for batches of odd sizes."""
    proto, channels = write_graph(model), next(model.parameters()).shape[1]
    for batch, height, width in ((3, 97, 161), (1, 65, 33)):
        images = batch_of(batch, height, width, channels)
        assert_same_outputs(run_graph(proto, images), model, images)


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a fraction of the largest expected value."""
    expected = expected.double()
    return float((found.double() - expected).abs().max() / expected.abs().max())
