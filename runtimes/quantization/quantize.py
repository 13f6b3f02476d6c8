"""`registry.quantize`: models in 8-bit integers as ONNX files, compared with the float ones.

How integers are fitted is in `method.py`; each step is measured in docs/quantization.md.
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
"""Metadata key of the method, in JSON."""

METHOD = {
    "format": "QDQ",
    "weights": "int8 per channel, each rounded to make up for the errors of those before",
    "activations": "uint8",
    "ranges": "least effect on the outputs",
    "float32": "up to the last map at stride 2 with the fewest channels",
}
"""The method as files state it."""

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
    """Write a model in 8-bit integers as an ONNX file, which `registry.compile` opens; see `Registry.quantize`.

    Args:
        catalogue: of the registry.
        model: a backbone, classifier, pyramid, segmenter, SSDLite or SSD with trained weights.
        path: ends in .onnx.
        images: folders and files to calibrate on.
        evaluate_on: others, on which the result is compared with the float model; by default every fifth of `images`.
        size: (height, width) in pixels that the model takes and that images are resized to; None for any, with images
            as the weights' preprocessing prepares them.
        threads: of the runtime when both models are timed; None for as many as PyTorch has.
        budget: maximum relative error of an output, or with `evaluate` points of its metric that may be lost.
        evaluate: evaluates an exported file on labelled images.
        begin: called with the label of each step and the number of its parts; it returns what is called after each.

    Raises:
        OptionError: another suffix than .onnx, an invalid budget, or a model that ends before the layers in integers.
        HeadError: another detector, or a detector among several heads.
        ExportError: the ONNX file in float32 computes something else than the model, a runtime does not run it, or the
            budget does not hold even with all layers in float32.
    """
    check_extra("quantising", ONNX.extra, ONNX.modules)
    if path.suffix != ".onnx":
        raise OptionError(f"the quantised model would be an ONNX file; give {str(path)!r} a name that ends in .onnx")
    check_budget(budget, labelled=evaluate is not None)
    _check_head(unwrap(model, "registry.quantize reads").description)
    prepared = replace(prepare_model(model, size), session=ONNX.session)
    prepared.check_on_cpu("onnxruntime")
    files, files_to_compare = split_images(images, evaluate_on)
    transform = make_transform(prepared.description, size)
    bad: dict[str, str] = {}
    bad_to_compare: dict[str, str] = {}
    import onnx

    from featuretap.runtimes.model_graphs import written_or_traced
    from featuretap.runtimes.quantization.calibrated_model import calibrate_model, call_of

    def images_to_compare(files: Sequence[ImageFile], done: Callable[[], object] = lambda: None) -> Iterator[Tensor]:
        return read_images(files, transform, "compare on", bad_to_compare, done)

    threads = threads or torch.get_num_threads()
    with keep_on_success(path) as written, library_errors(f"cannot quantise {prepared.label}"):
        written_or_traced(prepared, lambda model: write_verified(catalogue, model, ONNX, written, begin))
        exported, bytes_before = onnx.load(written), written.stat().st_size
        score = None if evaluate is None else evaluate(written)
        images_read = read_images(files, transform, "calibrate on", bad, begin("reading images", len(files)))
        calibrated = calibrate_model(prepared, exported, images_read, threads, begin)
        if not calibrated.layers:
            raise OptionError(
                f"no layer of {prepared.label} would be in integers, since the first ones stay in float32; export it",
            )
        kept, spent = Selection(), None
        if budget is not None:
            few = list(images_to_compare(sample_files(files_to_compare, SENSITIVITY_IMAGES)))

            def loss_of(in_float: Collection[str]) -> float:
                if evaluate is None or score is None:
                    return calibrated.measure_error(images_to_compare(files_to_compare), in_float)
                written.write_bytes(calibrated.file(in_float).SerializeToString())
                return score.percent - evaluate(written).percent

            measure = RELATIVE_ERROR if score is None else f"points of {score.metric}"
            error_of = partial(calibrated.measure_error, few)
            kept = select_layers(calibrated.layers, budget, measure, error_of, loss_of, begin)
            spent = Budget(measure, budget, kept.loss)
        quantised = calibrated.file(kept.in_float)
        bytes_added = quantised.ByteSize() - calibrated.file().ByteSize() if kept.in_float else 0
        method: dict[str, Any] = {**METHOD, "images": calibrated.images}
        if kept.in_float:
            method["in_float32"] = list(kept.in_float)
        quantised.metadata_props.add(key=QUANTIZED, value=json.dumps(method, sort_keys=True))
        done = begin("comparing with float32", len(files_to_compare))
        agreement = calibrated.measure_agreement(images_to_compare(files_to_compare, done), kept.in_float)
        image = next(images_to_compare(files_to_compare))
        graphs = {"float32": exported, "int8": quantised}
        calls = {name: call_of(graph, prepared.signature.outputs, threads) for name, graph in graphs.items()}
        runs = {name: partial(call, {IMAGE: image.numpy()}) for name, call in calls.items()}
        timings = time_interleaved(runs, ROUNDS, WARM_UP, PAUSE, begin("timing", len(runs) * (ROUNDS + WARM_UP)))
        written.write_bytes(quantised.SerializeToString())
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
        budget=spent,
        in_float32=kept.in_float,
        bytes_added=bytes_added,
        sensitivity=kept.sensitivity,
    )


def _check_head(description: Description) -> None:
    """Refuse detectors among several heads, and those whose graph is not written from their specs."""
    detector = next((name for name, head in description.heads.items() if head.preprocessing.inside), None)
    if detector is not None:
        raise HeadError(
            f"the head {detector!r} finds objects, and detectors are not quantized beside other heads",
            hint=Hint("quantize the heads one by one:", f"registry.select_head(model, {detector!r})"),
        )
    if description.preprocessing.inside and not outputs_by_spec(description):
        raise HeadError(
            f"the head {description.head!r} is not quantized, since its graph is not written from its spec; take "
            "'ssdlite' or 'ssd', or quantize the backbone that its taps come from"
        )
