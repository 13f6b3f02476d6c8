"""`registry.quantize`: write models in 8-bit integers as ONNX files and compare them with float32.

The method is in `method.py`. docs/quantization.md measures the effect of each step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from featuretap.models.built import unwrap
from featuretap.runtimes.compiled import write_verified
from featuretap.runtimes.exportable import prepare_model
from featuretap.runtimes.exported_files import keep_on_success
from featuretap.runtimes.formats import ONNX
from featuretap.runtimes.quantization.budget import (
    RELATIVE_ERROR,
    SENSITIVITY_IMAGES,
    Budget,
    Evaluate,
    Selection,
    check_budget,
    select_layers,
)
from featuretap.runtimes.quantization.images import make_transform, read_images, sample_files, split_images
from featuretap.runtimes.quantization.report import Report
from featuretap.runtimes.signature import library_errors, outputs_by_spec
from featuretap.specs.description import Description
from featuretap.specs.graph import IMAGE
from featuretap.support.errors import HeadError, Hint, OptionError
from featuretap.support.extras import check_extra
from featuretap.support.image_files import ImageFile
from featuretap.support.progress import Begin, log_steps
from featuretap.support.timing import PAUSE, time_interleaved

if TYPE_CHECKING:
    from featuretap.catalogue.catalogue import Catalogue

QUANTIZED = "featuretap.quantized"
"""Metadata key of the quantization method, as JSON."""

METHOD = {
    "format": "QDQ",
    "weights": "int8 per channel, rounded with error compensation (GPTQ)",
    "activations": "uint8",
    "ranges": "smallest error of the outputs",
    "float32": "up to the last map at stride 2 with the fewest channels",
}
"""The method as recorded in the file's metadata."""

ROUNDS, WARM_UP = 20, 3


def quantize(
    catalogue: Catalogue,
    model: nn.Module,
    path: Path,
    images: Sequence[Path],
    *,
    evaluate_on: Sequence[Path] = (),
    size: tuple[int, int] | None = None,
    threads: int | None = None,
    budget: float | None = None,
    evaluate: Evaluate | None = None,
    begin: Begin = log_steps,
) -> Report:
    """Write a model in 8-bit integers as an ONNX file; see `Registry.quantize`.

    Args:
        catalogue: the registry's catalogue.
        model: a trained backbone, classifier, pyramid, segmenter, SSDLite or SSD.
        path: path of the file, which must end in .onnx.
        images: folders and files to calibrate on.
        evaluate_on: folders and files to compare the result with float32 on; if empty, every fifth file of `images`.
        size: (height, width) in pixels of the model's input, to which images are resized. None accepts any size and
            prepares images with the checkpoint's preprocessing.
        threads: number of runtime threads for timing; None for PyTorch's number.
        budget: maximum relative error of an output or, with `evaluate`, maximum loss in points of the metric.
        evaluate: evaluates an exported file on labeled images.
        begin: starts a progress step: it takes a label and the number of items, and returns a function to call after
            each item.

    Returns:
        The report, with sizes, timings and agreement.

    Raises:
        OptionError: the path does not end in .onnx, the budget is invalid, or the model ends before the first quantized
            layer.
        HeadError: the detector is not supported, or the model has several heads with a detector among them.
        ExportError: the float32 ONNX file does not match the model, a runtime does not run it, or the budget is not met
            even with all layers in float32.
    """
    check_extra("quantization", ONNX.extra, ONNX.modules)
    if path.suffix != ".onnx":
        raise OptionError(f"quantized models are written as ONNX; got {str(path)!r}, use a name that ends in .onnx")
    check_budget(budget, labeled=evaluate is not None)
    _check_head(unwrap(model, "registry.quantize reads").description)
    prepared = replace(prepare_model(model, size), session=ONNX.session)
    prepared.check_on_cpu("onnxruntime")
    files, files_to_compare = split_images(images, evaluate_on)
    transform = make_transform(prepared.description, size)
    bad: dict[str, str] = {}
    bad_to_compare: dict[str, str] = {}
    import onnx

    from featuretap.runtimes.model_graphs import write_or_trace
    from featuretap.runtimes.quantization.calibrated_model import calibrate_model, make_call

    def images_to_compare(files: Sequence[ImageFile], done: Callable[[], object] = lambda: None) -> Iterator[Tensor]:
        return read_images(files, transform, "compare on", bad_to_compare, done)

    threads = threads or torch.get_num_threads()
    with keep_on_success(path) as written, library_errors(f"cannot quantize {prepared.label}"):
        write_or_trace(prepared, lambda model: write_verified(catalogue, model, ONNX, written, begin))
        exported, bytes_before = onnx.load(written), written.stat().st_size
        score = None if evaluate is None else evaluate(written)
        images_read = read_images(files, transform, "calibrate on", bad, begin("reading images", len(files)))
        calibrated = calibrate_model(prepared, exported, images_read, threads, begin)
        if not calibrated.layers:
            raise OptionError(
                f"cannot quantize {prepared.label}: it ends before the first layer that runs in integers; export it "
                "in float32 with registry.export"
            )
        selection, used_budget = Selection(), None
        if budget is not None:
            few = list(images_to_compare(sample_files(files_to_compare, SENSITIVITY_IMAGES)))

            def loss_of(in_float: Collection[str]) -> float:
                if evaluate is None or score is None:
                    return calibrated.measure_error(images_to_compare(files_to_compare), in_float)
                written.write_bytes(calibrated.file(in_float).SerializeToString())
                return score.percent - evaluate(written).percent

            measure = RELATIVE_ERROR if score is None else f"points of {score.metric}"
            error_of = partial(calibrated.measure_error, few)
            selection = select_layers(calibrated.layers, budget, measure, error_of, loss_of, begin)
            used_budget = Budget(measure, budget, selection.loss)
            if score is not None:
                scores = {"float32": score.percent, "int8": score.percent - selection.loss}
                used_budget = replace(used_budget, metric=score.metric, scores=scores, images=score.images)
        quantized = calibrated.file(selection.in_float)
        bytes_added = quantized.ByteSize() - calibrated.file().ByteSize() if selection.in_float else 0
        method: dict[str, Any] = {**METHOD, "images": calibrated.images}
        if selection.in_float:
            method["in_float32"] = list(selection.in_float)
        quantized.metadata_props.add(key=QUANTIZED, value=json.dumps(method, sort_keys=True))
        done = begin("comparing with float32", len(files_to_compare))
        agreement = calibrated.measure_agreement(images_to_compare(files_to_compare, done), selection.in_float)
        image = next(images_to_compare(files_to_compare))
        graphs = {"float32": exported, "int8": quantized}
        calls = {name: make_call(graph, prepared.signature.outputs, threads) for name, graph in graphs.items()}
        runs = {name: partial(call, {IMAGE: image.numpy()}) for name, call in calls.items()}
        timings = time_interleaved(runs, ROUNDS, WARM_UP, PAUSE, begin("timing", len(runs) * (ROUNDS + WARM_UP)))
        written.write_bytes(quantized.SerializeToString())
    return Report(
        path=path,
        bytes_before=bytes_before,
        bytes_after=path.stat().st_size,
        timings=timings,
        shape=tuple(image.shape),
        calibrated=calibrated.images,
        evaluated=[file.text for file in files_to_compare if file.text not in bad_to_compare],
        held_back=not evaluate_on,
        bad=bad | bad_to_compare,
        agreement=agreement,
        budget=used_budget,
        in_float32=selection.in_float,
        bytes_added=bytes_added,
        sensitivity=selection.sensitivity,
    )


def _check_head(description: Description) -> None:
    """Check that a model's heads can be quantized: no detector among several heads, none without ONNX nodes."""
    detector = next((name for name, head in description.heads.items() if head.preprocessing.inside), None)
    if detector is not None:
        raise HeadError(
            f"cannot quantize the detector {detector!r} together with other heads",
            hint=Hint("quantize each head separately:", f"registry.select_head(model, {detector!r})"),
        )
    if description.preprocessing.inside and not outputs_by_spec(description):
        raise HeadError(
            f"cannot quantize the head {description.head!r}: featuretap has no ONNX nodes for it; use 'ssdlite' or "
            "'ssd', or quantize the backbone without a head"
        )
