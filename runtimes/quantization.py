"""`registry.quantize`: models in 8-bit integers as ONNX files, compared with the float ones.

The settings of ONNX Runtime's quantisation are chosen by measurement; see docs/quantization.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from featuretap.models.transforms import compose, compose_for_size
from featuretap.runtimes.agreement import Outputs, measure_agreement
from featuretap.runtimes.compiled import metadata_of_model
from featuretap.runtimes.exportable import prepare_model
from featuretap.runtimes.exported_files import keep_on_success
from featuretap.runtimes.formats import ONNX
from featuretap.runtimes.signature import library_errors
from featuretap.specs.agreement import Agreement
from featuretap.specs.description import Description
from featuretap.specs.graph import IMAGE
from featuretap.specs.preprocessing import check_channels
from featuretap.support.errors import DataError, HeadError, Hint, ImageError, OptionError
from featuretap.support.extras import check_extra
from featuretap.support.image_files import ImageFile, list_images
from featuretap.support.images import read_image
from featuretap.support.progress import Begin, log_steps
from featuretap.support.timing import PAUSE, Timing, time_interleaved

if TYPE_CHECKING:
    import onnx

    from featuretap.catalogue.catalogue import Catalogue

QUANTIZED = "featuretap.quantized"
"""Metadata key of the method, in JSON."""

METHOD = {
    "format": "QDQ",
    "weights": "int8 per channel, of 7 bits where channels are summed",
    "activations": "uint8",
    "ranges": "means of the smallest and the largest of each image",
}
"""The method as files state it."""

OPERATIONS = ["Conv", "Gemm", "Clip", "Relu", "Add"]
"""Operations computed in integers, and activations that become a part of them."""

ROUNDS, WARM_UP = 20, 3

MAXIMUM_IMAGES = 256
"""Images to calibrate on, and images to compare on; more change little."""

MINIMUM_IMAGES = 10
"""Images without a separate set to compare on; with fewer, the part held back is too small."""

HELD_BACK = 5
"""Of this many images, the last is held back from calibration."""


@dataclass(frozen=True)
class Report:
    """The result of a quantisation.

    Args:
        path: of the quantised file.
        bytes_before: size of the float model as ONNX.
        bytes_after: size of the quantised file.
        timings: "float32" and "int8" → time of a call with one image in ONNX Runtime.
        shape: of the images of the calls, (1, C, H, W).
        calibrated: number of images that ranges were measured on.
        judged: names of the images that `agreement` was measured on; none of them was calibrated on.
        held_back: whether those were a part of the given images.
        bad: names of images that could not be read → why.
        agreement: output → similarity to the float model's.
    """

    path: Path
    bytes_before: int
    bytes_after: int
    timings: Mapping[str, Timing]
    shape: tuple[int, ...]
    calibrated: int
    judged: Sequence[str]
    held_back: bool
    bad: Mapping[str, str]
    agreement: Mapping[str, Agreement]

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values; times are in seconds."""
        summary = ("median", "quartiles", "ratio", "ratio_quartiles")
        return {
            "path": str(self.path),
            "bytes": {"float32": self.bytes_before, "int8": self.bytes_after},
            "seconds": {name: {key: getattr(t, key) for key in summary} for name, t in self.timings.items()},
            "shape": list(self.shape),
            "calibrated": self.calibrated,
            "judged": list(self.judged),
            "held_back": self.held_back,
            "bad": dict(self.bad),
            "agreement": {name: asdict(agreement) for name, agreement in self.agreement.items()},
        }


def quantize(
    catalogue: Catalogue,
    model: nn.Module,
    path: Path,
    images: Sequence[Path],
    *,
    judge_on: Sequence[Path] = (),
    size: tuple[int, int] | None = None,
    threads: int | None = None,
    begin: Begin = log_steps,
) -> Report:
    """Write a model in 8-bit integers as an ONNX file, which `registry.compile` opens; see `Registry.quantize`.

    Args:
        catalogue: of the registry.
        model: a backbone, classifier, pyramid or segmenter with trained weights.
        path: ends in .onnx.
        images: folders and files to calibrate on.
        judge_on: others, on which the result is compared with the float model; by default every fifth of `images`.
        size: (height, width) in pixels that the model takes and that images are resized to; None for any, with images
            as the weights' preprocessing prepares them.
        threads: of the runtime when both models are timed; None for as many as PyTorch has.
        begin: called with the label of each step and the number of its parts; it returns what is called after each.

    Raises:
        OptionError: another suffix than .onnx.
        HeadError: a detector.
    """
    check_extra("quantising", ONNX.extra, ONNX.modules)
    if path.suffix != ".onnx":
        raise OptionError(f"the quantised model would be an ONNX file; give {str(path)!r} a name that ends in .onnx")
    prepared = replace(prepare_model(model, size), session=ONNX.session)
    prepared.check_on_cpu("onnxruntime")
    if prepared.description.heads:
        raise HeadError(
            "models with several heads are not quantized",
            hint=Hint(
                "quantize them one by one:", f"registry.select_head(model, {next(iter(prepared.description.heads))!r})"
            ),
        )
    if prepared.detects:
        raise HeadError(
            f"the head {prepared.description.head!r} finds objects, and detectors are not quantized; quantize the "
            "backbone that its taps come from"
        )
    files, files_to_compare = _split_images(images, judge_on)
    transform = _make_transform(prepared.description, size)
    bad: dict[str, str] = {}
    bad_to_compare: dict[str, str] = {}
    import onnx

    from featuretap.runtimes.model_graphs import graph_of, written_or_traced
    from featuretap.runtimes.onnx_runtime import onnx_session

    threads = threads or torch.get_num_threads()
    with keep_on_success(path) as written:
        begin("writing ONNX", None)
        exported = written_or_traced(prepared, graph_of)
        onnx.helper.set_model_props(exported, metadata_of_model(catalogue, prepared))
        images_read = _read_images(files, transform, "calibrate on", bad, begin("calibrating", len(files)))
        with library_errors(f"cannot quantise {prepared.label}"):
            quantised = _quantize_statically(exported, images_read)
        calibrated = len(files) - len(bad)
        method = json.dumps({**METHOD, "images": calibrated}, sort_keys=True)
        quantised.metadata_props.add(key=QUANTIZED, value=method)
        contents = {"float32": exported.SerializeToString(), "int8": quantised.SerializeToString()}
        names = prepared.signature.outputs
        calls = {name: partial(onnx_session(content, threads).run, list(names)) for name, content in contents.items()}
        done = begin("comparing with the model", len(files_to_compare))
        compared = _read_images(files_to_compare, transform, "compare on", bad_to_compare, done)
        agreement = measure_agreement(_outputs_of(calls.values(), names, image) for image in compared)
        image = next(_read_images(files_to_compare, transform, "compare on", bad_to_compare))
        runs = {name: partial(call, {IMAGE: image.numpy()}) for name, call in calls.items()}
        timings = time_interleaved(runs, ROUNDS, WARM_UP, PAUSE, begin("timing", len(runs) * (ROUNDS + WARM_UP)))
        written.write_bytes(contents["int8"])
    return Report(
        path=path,
        bytes_before=len(contents["float32"]),
        bytes_after=len(contents["int8"]),
        timings=timings,
        shape=tuple(image.shape),
        calibrated=calibrated,
        judged=[file.text for file in files_to_compare if file.text not in bad_to_compare],
        held_back=not judge_on,
        bad=bad | bad_to_compare,
        agreement=agreement,
    )


def _read_images(
    files: Sequence[ImageFile],
    transform: Callable[[Any], Tensor],
    purpose: str,
    errors: dict[str, str],
    done: Callable[[], object] = lambda: None,
) -> Iterator[Tensor]:
    """Yield images (1, C, H, W) one by one, and collect name → reason of the unreadable ones in `errors`."""
    for file in files:
        try:
            image = transform(read_image(Path(file.path)))[None]
        except ImageError as error:
            errors[file.text] = str(error)
        else:
            yield image
        done()
    if len(errors) == len(files):
        reason = next(iter(errors.values()))
        raise DataError(f"none of the {len(files)} images to {purpose} can be read: {reason}")


def _split_images(images: Sequence[Path], judge_on: Sequence[Path]) -> tuple[list[ImageFile], list[ImageFile]]:
    """Return images to calibrate on and others to compare on, by default every fifth; `MAXIMUM_IMAGES` of each."""
    found = list_images(images)
    if judge_on:
        calibrated = {file.path for file in found}
        compared = [file for file in list_images(judge_on) if file.path not in calibrated]
        if not compared:
            raise DataError(
                "every image to compare on is one that is calibrated on, to which the ranges are fitted; give others"
            )
        return _sample(found), _sample(compared)
    if len(found) < MINIMUM_IMAGES:
        raise DataError(
            f"there are too few images to calibrate on some and compare on others: {len(found)}; give "
            f"{MINIMUM_IMAGES} or more, or others to compare on"
        )
    calibrated_on = [file for place, file in enumerate(found, 1) if place % HELD_BACK]
    return _sample(calibrated_on), _sample(found[HELD_BACK - 1 :: HELD_BACK])


def _make_transform(description: Description, size: tuple[int, int] | None) -> Callable[[Any], Tensor]:
    """Return image → tensor (C, H, W) of a size (height, width), or of that of the weights, square if uncropped."""
    preprocessing = description.preprocessing
    check_channels(preprocessing, repr(description.name))
    if size is None:
        return compose(replace(preprocessing, crop=preprocessing.crop or preprocessing.resize))
    return compose_for_size(preprocessing, size)


def _sample(files: Sequence[ImageFile]) -> list[ImageFile]:
    count = min(len(files), MAXIMUM_IMAGES)
    return [files[place * len(files) // count] for place in range(count)]


def _outputs_of(calls: Iterable[Callable[..., Any]], names: Sequence[str], image: Tensor) -> tuple[Outputs, Outputs]:
    expected, found = (dict(zip(names, call({IMAGE: image.numpy()}), strict=True)) for call in calls)
    return expected, found


class _CalibrationReader:
    """Images as ONNX Runtime reads them, one by one."""

    def __init__(self, images: Iterable[Tensor]) -> None:
        self.images = iter(images)

    def get_next(self) -> Mapping[str, object] | None:
        """Return the inputs of the next call, or None at the end."""
        image = next(self.images, None)
        return None if image is None else {IMAGE: image.numpy()}


def _quantize_statically(model: onnx.ModelProto, images: Iterable[Tensor]) -> onnx.ModelProto:
    """Return a model in 8-bit integers with the names, free axes and metadata of a float one, calibrated on images."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    eight_bits = {"axis": 0, "quant_type": QuantType.QInt8, "symmetric": True, "reduce_range": False}
    with TemporaryDirectory(prefix="featuretap-") as folder:
        exported, preprocessed, result = (Path(folder) / name for name in ("exported", "preprocessed", "result"))
        onnx.save(model, exported)
        # ONNX Runtime's own optimisation would break HardSwish up.
        quant_pre_process(exported, preprocessed, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            preprocessed,
            result,
            _CalibrationReader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=OPERATIONS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Pairs of products with 8-bit weights saturate in the 16-bit sums of processors without VNNI.
            reduce_range=True,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                # The mean of all images' ranges, whose extremes would leave few steps to common values.
                "CalibMovingAverage": True,
                # Logits beyond the range would be cut to one value, and any of them be the largest.
                "OpTypesToExcludeOutputQuantization": ["Gemm"],
                "TensorQuantOverrides": {weights: [eight_bits] for weights in _depthwise_weights(model)},
            },
        )
        quantised: onnx.ModelProto = onnx.load(result)
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(model.metadata_props)
    return quantised


def _depthwise_weights(model: onnx.ModelProto) -> list[str]:
    """Return the names of the weights of depthwise convolutions, which are summed in 32 bits everywhere."""
    shapes = {constant.name: constant.dims for constant in model.graph.initializer}
    groups = {
        node.input[1]: next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        for node in model.graph.node
        if node.op_type == "Conv"
    }
    return [weights for weights, count in groups.items() if count > 1 and weights in shapes and shapes[weights][1] == 1]
