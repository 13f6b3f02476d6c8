"""`registry.quantize`: models in 8-bit integers as ONNX files, compared with the float ones.

How integers are fitted is in `method.py`; each step is measured in docs/quantization.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from featuretap.models.built import unwrap
from featuretap.runtimes.agreement import Outputs, measure_agreement
from featuretap.runtimes.compiled import write_verified
from featuretap.runtimes.exportable import prepare_model
from featuretap.runtimes.exported_files import keep_on_success
from featuretap.runtimes.formats import ONNX
from featuretap.runtimes.quantization.images import make_transform, read_images, split_images
from featuretap.runtimes.quantization.report import Report
from featuretap.runtimes.signature import library_errors, outputs_by_spec
from featuretap.runtimes.verification import PREDICTIONS
from featuretap.specs.description import Description
from featuretap.specs.graph import IMAGE
from featuretap.support.errors import HeadError, Hint, OptionError
from featuretap.support.extras import check_extra
from featuretap.support.progress import Begin, log_steps
from featuretap.support.timing import PAUSE, time_interleaved

if TYPE_CHECKING:
    import onnx

    from featuretap.catalogue.catalogue import Catalogue

QUANTIZED = "featuretap.quantized"
"""Metadata key of the method, in JSON."""

METHOD = {
    "format": "QDQ",
    "weights": "int8 per channel, each rounded to make up for the errors of those before",
    "activations": "uint8, equalised",
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
        begin: called with the label of each step and the number of its parts; it returns what is called after each.

    Raises:
        OptionError: another suffix than .onnx.
        HeadError: another detector, or a detector among several heads.
        ExportError: the ONNX file in float32 computes something else than the model, or a runtime does not run it.
    """
    check_extra("quantising", ONNX.extra, ONNX.modules)
    if path.suffix != ".onnx":
        raise OptionError(f"the quantised model would be an ONNX file; give {str(path)!r} a name that ends in .onnx")
    _check_head(unwrap(model, "registry.quantize reads").description)
    prepared = replace(prepare_model(model, size), session=ONNX.session)
    prepared.check_on_cpu("onnxruntime")
    files, files_to_compare = split_images(images, evaluate_on)
    transform = make_transform(prepared.description, size)
    bad: dict[str, str] = {}
    bad_to_compare: dict[str, str] = {}
    import onnx

    from featuretap.runtimes.model_graphs import graph_of, written_or_traced
    from featuretap.runtimes.quantization.detectors import split_detector, without_outputs
    from featuretap.runtimes.quantization.method import calibrate

    threads = threads or torch.get_num_threads()
    names = compared = prepared.signature.outputs
    with keep_on_success(path) as written, library_errors(f"cannot quantise {prepared.label}"):
        written_or_traced(prepared, lambda model: write_verified(catalogue, model, ONNX, written, begin))
        exported = onnx.load(written)
        images_read = read_images(files, transform, "calibrate on", bad, begin("reading images", len(files)))
        if prepared.detects:
            compared = PREDICTIONS
            detector = split_detector(graph_of(prepared, intermediate=True), compared)
            calibrated = calibrate(detector.network, [*map(detector.prepare(threads), images_read)], begin)
            with_predictions = {"float32": detector.graph, "int8": detector.with_network(calibrated.write())}
            quantised = without_outputs(with_predictions["int8"], compared)
            quantised.metadata_props.extend(exported.metadata_props)
        else:
            calibrated = calibrate(exported, [*images_read], begin)
            quantised = calibrated.write()
            with_predictions = {"float32": exported, "int8": quantised}
        method = json.dumps({**METHOD, "images": calibrated.images}, sort_keys=True)
        quantised.metadata_props.add(key=QUANTIZED, value=method)
        done = begin("comparing with float32", len(files_to_compare))
        read = read_images(files_to_compare, transform, "compare on", bad_to_compare, done)
        calls = _calls(with_predictions, compared, threads)
        agreement = measure_agreement(_outputs_of(calls.values(), compared, image) for image in read)
        image = next(read_images(files_to_compare, transform, "compare on", bad_to_compare))
        calls = _calls({"float32": exported, "int8": quantised}, names, threads)
        runs = {name: partial(call, {IMAGE: image.numpy()}) for name, call in calls.items()}
        timings = time_interleaved(runs, ROUNDS, WARM_UP, PAUSE, begin("timing", len(runs) * (ROUNDS + WARM_UP)))
        bytes_before = written.stat().st_size
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


def _calls(graphs: Mapping[str, onnx.ModelProto], names: Sequence[str], threads: int) -> dict[str, Callable[..., Any]]:
    """Return what runs each graph in ONNX Runtime, and returns the outputs `names`."""
    from featuretap.runtimes.onnx_runtime import onnx_session

    sessions = {name: onnx_session(graph.SerializeToString(), threads) for name, graph in graphs.items()}
    return {name: partial(session.run, list(names)) for name, session in sessions.items()}


def _outputs_of(calls: Iterable[Callable[..., Any]], names: Sequence[str], image: Tensor) -> tuple[Outputs, Outputs]:
    expected, found = (dict(zip(names, call({IMAGE: image.numpy()}), strict=True)) for call in calls)
    return expected, found
