"""Compare the outputs of compiled models and exported files with the original model."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from featuretap.models.multi_head import MultiHeadModel
from featuretap.models.several_heads import select_head
from featuretap.runtimes.agreement import Outputs, check_agreement, measure_agreement, pairs_of_images, random_images
from featuretap.runtimes.exportable import Exportable, Run
from featuretap.runtimes.model_graphs import DifferenceError, make_graph, open_graph
from featuretap.runtimes.outputs import flatten
from featuretap.runtimes.signature import library_errors, outputs_by_spec
from featuretap.specs.agreement import Agreement
from featuretap.specs.runtime import FLOAT32

TOLERANCE = 1e-4
"""Maximum difference from the model's output, as a fraction of its largest absolute value."""

ROUNDING_FACTOR = 8
"""Maximum difference as a multiple of the model's own float32 rounding error, if that is larger. With some weights,
float32 leaves few correct digits in any implementation."""

BATCHES = (1, 3)
SIZES = ((65, 97), (64, 96))
"""Image sizes for graphs written from specs, whose nodes do not depend on the size."""

TRACED_SIZES = ((225, 161), (192, 288), (520, 600))
"""Image sizes for traced graphs. They differ from the traced size; one is odd and one exceeds 512 pixels."""


PREDICTIONS = ("cls_logits", "bbox_regression")
"""Predictions of a detector before box selection, as named in `Graph.intermediate`."""


def verify_outputs(model: Exportable, run: Run) -> dict[str, Agreement]:
    """Compare a runtime's outputs with the model's, for several batch sizes and image sizes unless they are fixed.

    For detectors, the predictions before box selection are compared, since the selection among equal scores is
    arbitrary.

    Args:
        model: the model.
        run: runs the model in the runtime.

    Returns:
        Output → agreement with the model in reduced precision; empty in float32.

    Raises:
        ExportError: an output differs (`DifferenceError`), or the runtime rejects images that the model accepts. In
            reduced precision, outputs differ if the shapes or dtypes differ or the agreement is too low.
    """
    names = model.signature.outputs
    compute: Callable[[nn.Module, Tensor], Sequence[Tensor]] = _call
    if model.detects:
        names = _compared_outputs(model)
        compute = partial(_predictions, names=names)
        # Only checks that the original graph runs. Its predictions are those of the graph with more outputs.
        run(model.images[: model.signature.batch or 1])
        run = _with_predictions(model, names)
    hint = "" if model.signature.size else "; set a fixed size, such as size=(224, 224)"
    reference = model.model if model.detects else model.module
    exactly = model.precision == FLOAT32
    pairs: list[tuple[Outputs, Outputs]] = []
    for images in _images(model):
        try:
            expected = compute(reference, images)
        except Exception:
            # The model itself may not accept this size.
            if model.signature.size:
                raise
            continue
        shape = tuple(images.shape)
        problem = f"cannot compile or export {model.label}: the runtime fails for images {shape}"
        with library_errors(problem, hint, unchanged=()):
            outputs = tuple(run(images))
        if len(outputs) != len(expected):
            raise DifferenceError(
                f"cannot compile or export {model.label}: the runtime returns {len(outputs)} outputs, not "
                f"{len(expected)}"
            )
        for index, (name, want, got) in enumerate(zip(names, expected, outputs, strict=True)):
            form = _difference_of_form(want, got)
            problem = form or (_difference(want, got) if exactly else "")
            if problem and not form:
                exact = compute(copy.deepcopy(reference).double(), images.double())[index]
                if _distance(exact, got) <= ROUNDING_FACTOR * _distance(exact, want):
                    continue
            if problem:
                raise DifferenceError(
                    f"cannot compile or export {model.label}: for images {shape} its output {name!r} {problem}{hint}"
                )
        if not exactly:
            pairs += pairs_of_images(names, *([values.cpu() for values in all_] for all_ in (expected, outputs)))
    agreement = measure_agreement(pairs)
    check_agreement(model.label, agreement, model.precision)
    return agreement


@torch.no_grad()
def _call(module: nn.Module, images: Tensor) -> Sequence[Tensor]:
    outputs: Sequence[Tensor] = module(images)
    return outputs


def _compared_outputs(model: Exportable) -> tuple[str, ...]:
    """Return the outputs to compare, with each detector's predictions in place of its detections."""
    if not model.description.heads:
        return PREDICTIONS
    names: list[str] = []
    for name, head in model.description.heads.items():
        own = PREDICTIONS if head.preprocessing.inside else outputs_by_spec(head)
        names += [f"{name}.{output}" for output in own]
    return tuple(names)


@torch.no_grad()
def _predictions(model: Any, images: Tensor, names: Sequence[str]) -> Sequence[Tensor]:
    """Return the outputs `names` of a model with a detector."""
    if not isinstance(model, MultiHeadModel):
        predicted = _predict(model, images)
    else:
        returned = model(images)
        detectors = [name for name, head in model.description.heads.items() if head.preprocessing.inside]
        returned |= {name: _predict(select_head(model, name), images) for name in detectors}
        predicted = flatten(returned, names)
    return [predicted[name] for name in names]


def _predict(detector: Any, images: Tensor) -> dict[str, Tensor]:
    """Return a detector's predictions before box selection."""
    prepared, _ = detector.as_detector().transform(list(images))
    predicted: dict[str, Tensor] = detector.head(detector.backbone(prepared.tensors))
    return predicted


def _with_predictions(model: Exportable, names: Sequence[str]) -> Run:
    """Return a function that runs a graph with detector predictions as extra outputs and returns `names`."""
    graph = make_graph(model, intermediate=True)
    outputs = [output.name for output in graph.graph.output]
    run = open_graph(model, graph).run

    def run_by_name(images: Tensor) -> list[Tensor]:
        found = dict(zip(outputs, run(images.numpy()), strict=True))
        return [torch.from_numpy(found[name]) for name in names]

    return run_by_name


def _images(model: Exportable) -> Iterator[Tensor]:
    free = TRACED_SIZES if model.traced else SIZES
    if model.traced or model.precision != FLOAT32:
        free = (*free, tuple(model.images.shape[2:]))
    sizes = [model.signature.size] if model.signature.size else free
    batches = [model.signature.batch] if model.signature.batch else BATCHES
    generator = torch.Generator().manual_seed(0)
    for index in range(max(len(sizes), len(batches))):
        batch, size = batches[index % len(batches)], sizes[index % len(sizes)]
        shape = (batch, model.signature.channels, *size)
        exactly = model.precision == FLOAT32
        images = torch.randn(shape, generator=generator) if exactly else torch.from_numpy(random_images(shape))
        yield images.to(model.images.device, model.images.dtype)


def _difference_of_form(want: Tensor, got: Any) -> str:
    """Return a description of a wrong type, dtype or shape, or an empty string."""
    if not isinstance(got, Tensor) or got.dtype != want.dtype:
        return f"is {got.dtype if isinstance(got, Tensor) else type(got).__name__}, not {want.dtype}"
    return "" if want.shape == got.shape else f"is {tuple(got.shape)}, not {tuple(want.shape)}"


def _difference(want: Tensor, got: Tensor) -> str:
    """Return a description of wrong values, or an empty string."""
    # The rounding error of half precision exceeds 1e-4.
    allowed = max(TOLERANCE, 8 * torch.finfo(want.dtype).eps)
    largest, difference = float(want.abs().max()), _distance(want, got)
    if difference <= allowed * largest:
        return ""
    return f"differs from the model's by {difference:.2g}, with values up to {largest:.2g}"


def _distance(expected: Tensor, found: Tensor) -> float:
    return float((expected.double() - found.double()).abs().max())
