"""`registry.quantize`: a model in 8-bit integers as an ONNX file, and how near it is to the float one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from featuretap.runtimes.agreement import Agreement, agreements
from featuretap.runtimes.calibration import Photographs, preparation, split
from featuretap.runtimes.exportable import exportable
from featuretap.runtimes.exporting import kept_on_success
from featuretap.runtimes.onnx_files import IMAGE, PACKAGES, onnx_model
from featuretap.runtimes.stated import stated
from featuretap.support.errors import DataError, ExportError, FeaturetapError, OptionError
from featuretap.support.extras import check_extra
from featuretap.support.timing import PAUSE, Timing, interleaved

if TYPE_CHECKING:
    from featuretap.registry.registry import Registry

__all__ = ["QUANTIZED", "Report", "quantize"]

QUANTIZED = "featuretap.quantized"
"""The name under which files say what was done, in JSON."""

ROUNDS, WARM_UP = 20, 3

Begin = Callable[[str, int], Callable[[], object]]


@dataclass(frozen=True)
class Report:
    """What became of a model.

    Args:
        path: of the file in integers.
        bytes_before: of the float model as ONNX.
        bytes_after: of the file in integers.
        timings: "float32" and "int8" → time of a call with one image in ONNX Runtime.
        shape: of the images of the calls, (1, C, H, W).
        calibrated: how many images ranges were measured on.
        judged: names of the images that `agreement` is of; none of them was calibrated on.
        held_back: whether those were a part of the given ones.
        bad: names of images that could not be read → why.
        agreement: output → how near it is to the float model's.
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
        """Return everything as JSON has it; times are in seconds."""
        times = {
            name: {
                "median": timing.median,
                "quartiles": timing.quartiles,
                "ratio": timing.ratio,
                "ratio_quartiles": timing.ratio_quartiles,
            }
            for name, timing in self.timings.items()
        }
        return {
            "path": str(self.path),
            "bytes": {"float32": self.bytes_before, "int8": self.bytes_after},
            "seconds": times,
            "shape": list(self.shape),
            "calibrated": self.calibrated,
            "judged": list(self.judged),
            "held_back": self.held_back,
            "bad": dict(self.bad),
            "agreement": {name: asdict(agreement) for name, agreement in self.agreement.items()},
        }


def _unseen(words: str, total: int) -> Callable[[], object]:
    return lambda: None


def quantize(
    registry: Registry,
    model: nn.Module,
    path: Path,
    images: Sequence[Path],
    *,
    judge_on: Sequence[Path] = (),
    size: tuple[int, int] | None = None,
    threads: int | None = None,
    begin: Begin = _unseen,
) -> Report:
    """Write a model in 8-bit integers as an ONNX file, which `registry.compile` opens; see `Registry.quantize`.

    Args:
        registry: the model's.
        model: a backbone, classifier, pyramid or segmenter with trained weights.
        path: ends in .onnx.
        images: folders and files to calibrate on.
        judge_on: others, on which the result is compared with the float model; without, every fifth of `images`.
        size: (height, width) in pixels that the model shall take, and that whole images are resized to; None for any,
            and for images as the weights' preprocessing makes them.
        threads: of the runtime when both models are timed; None for as many as torch has.
        begin: told what begins, and how many parts it has; what it returns is called after each.

    Raises:
        MissingExtraError: packages for ONNX are not installed.
        OptionError: a path of another ending, no model of featuretap's, or one that is not in float32 on the CPU.
        HeadError: a head whose outputs are no tensors by name, as detectors'.
        DataError: too few images, or none that can be read.
        ExportError: the model cannot be exported or quantised, or the file not be written.
    """
    check_extra("quantising", "onnxruntime", PACKAGES)
    if path.suffix != ".onnx":
        raise OptionError(f"the quantised model would be an ONNX file; give {str(path)!r} a name that ends in .onnx")
    calibrated_on, judged_on = split(images, judge_on)
    prepared = exportable(model, size)
    prepared.check_on_cpu("onnxruntime")
    prepare = preparation(prepared.description, size)
    from featuretap.runtimes.integers import METHOD, in_integers
    from featuretap.runtimes.on_onnxruntime import session_of

    with kept_on_success(path) as written:
        done = begin("exporting", 1)
        exported = onnx_model(prepared, stated(registry, prepared))
        done()
        calibrated = Photographs(calibrated_on, prepare, begin("calibrating", len(calibrated_on)))
        try:
            quantised = in_integers(exported, _some(calibrated, "calibrate"))
        except FeaturetapError:
            raise
        except Exception as error:
            # Whatever the library comes upon in a network.
            reason = " ".join(str(error).split())[:200]
            raise ExportError(f"cannot quantise {prepared.words} ({type(error).__name__}: {reason})") from error
        said = {**METHOD, "images": len(calibrated.read)}
        quantised.metadata_props.add(key=QUANTIZED, value=json.dumps(said, sort_keys=True))
        contents = {"float32": exported.SerializeToString(), "int8": quantised.SerializeToString()}
        sessions = [session_of(content, threads) for content in contents.values()]
        names = prepared.signature.outputs
        judged = Photographs(judged_on, prepare, begin("judging", len(judged_on)))
        agreement = agreements(_answers(sessions, names, image) for image in _some(judged, "judge"))
        image = next(iter(judged))
        runs = {name: partial(_run, session, names, image) for name, session in zip(contents, sessions, strict=True)}
        timings = interleaved(runs, ROUNDS, WARM_UP, PAUSE, begin("timing", len(runs) * (ROUNDS + WARM_UP)))
        written.write_bytes(contents["int8"])
    return Report(
        path=path,
        bytes_before=len(contents["float32"]),
        bytes_after=len(contents["int8"]),
        timings=timings,
        shape=tuple(image.shape),
        calibrated=len(calibrated.read),
        judged=judged.read,
        held_back=not judge_on,
        bad={**calibrated.bad, **judged.bad},
        agreement=agreement,
    )


def _answers(sessions: Iterable[Any], names: Sequence[str], image: Tensor) -> tuple[dict[str, Tensor], ...]:
    made = (map(torch.from_numpy, _run(session, names, image)) for session in sessions)
    return tuple(dict(zip(names, arrays, strict=True)) for arrays in made)


def _run(session: Any, names: Sequence[str], image: Tensor) -> list[Any]:
    outputs: list[Any] = session.run(list(names), {IMAGE: image.numpy()})
    return outputs


def _some(images: Photographs, wanted: str) -> Iterator[Tensor]:
    """Yield images, and refuse that there be none.

    Raises:
        DataError: none of them can be read.
    """
    some = False
    for image in images:
        some = True
        yield image
    if not some:
        reason = next(iter(images.bad.values()))
        raise DataError(f"none of the {len(images.files)} images to {wanted} on can be read: {reason}")
