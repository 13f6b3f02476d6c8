"""`registry.session`: models that a runtime runs without PyTorch, for NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featuretap.catalogue.addresses import is_address
from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.multi_head_request import MultiHeadRequest, resolve_multi_head_request
from featuretap.catalogue.pretrained import WeightsSource, is_location
from featuretap.catalogue.request import BuildRequest, resolve_request
from featuretap.runtimes import preparing
from featuretap.runtimes.agreement import check_agreement, measure_agreement, pairs_of_images, random_images
from featuretap.runtimes.graphs import write_graph
from featuretap.runtimes.precision import check_processor, check_runtime_precision
from featuretap.runtimes.signature import (
    SINGLE_OUTPUTS,
    Array,
    Opened,
    Signature,
    by_head,
    check_sizes,
    check_threads,
    find_opener,
    library_errors,
    outputs_by_spec,
    read_metadata,
)
from featuretap.specs import BackboneSpec, ModelSpec, RuntimeSpec, Tap
from featuretap.specs.agreement import Agreement
from featuretap.specs.class_names import class_names
from featuretap.specs.description import Description
from featuretap.specs.head import backbone_of
from featuretap.specs.runtime import AUTO, FLOAT32
from featuretap.specs.validation import ARGUMENTS
from featuretap.support.errors import ExportError, NodesError, OptionError, WeightsError
from featuretap.support.extras import check_extra
from featuretap.support.images import read_image
from featuretap.support.import_strings import load
from featuretap.weights.fitting import FittedWeights, fit_checkpoint
from featuretap.weights.fitting_heads import fit_several_heads
from featuretap.weights.opening import open_checkpoint
from featuretap.weights.reading import Checkpoint
from featuretap.weights.requests import resolve_checkpoint, resolve_multi_head_checkpoint
from featuretap.weights.several_heads import checkpoint_for, has_several_heads, select_part

if TYPE_CHECKING:
    import onnx
    from PIL import Image

    from featuretap.support.timing import Timing

Request: TypeAlias = BuildRequest | MultiHeadRequest

COMPARED = 4
"""Number of images on which precisions are compared, if that is free."""


class Session:
    """A model that a runtime runs without PyTorch: images (N, C, H, W) → outputs by name.

    Attributes:
        description: of the model, preprocessing included.
        runtime: name of the runtime.
        outputs: names of the outputs, in order.
        taps: output → channels and stride, of a backbone or a pyramid; empty for other models.
        classes: name of every class of the model, as far as they are known.
        size: (height, width) of its images in pixels, or None for any.
        batch: number of images of a call, or None for any.
        timings: runtime → time of a call, fastest first, where `runtime="auto"` chose; empty otherwise.

    Example::

        session = registry.session("model.safetensors")
        outputs = session(session.prepare("photo.jpg"))
    """

    def __init__(
        self, run: Callable[[Array], Sequence[Array]], signature: Signature, description: Description, runtime: str
    ) -> None:
        self._run = run
        self._signature = signature
        self.description = description
        self.runtime = runtime
        self.outputs = signature.outputs
        self.size, self.batch = signature.size, signature.batch
        self.taps: dict[str, Tap] = dict(signature.taps)
        self.classes = class_names(description)
        self.timings: Mapping[str, Timing] = {}

    def __call__(self, images: Array) -> dict[str, Any]:
        """Return the outputs for images (N, C, H, W) of float32, as `prepare` returns them.

        They are arrays by name, or of a model with several heads such a dict by the name of each head.

        Raises:
            OptionError: images of another shape or type.
        """
        if not isinstance(images, np.ndarray) or images.dtype != np.float32:
            found = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
            raise OptionError(f"a session takes images (N, C, H, W) as an array of float32, got {found}")
        if expected := self._signature.mismatch(images.shape):
            raise OptionError(f"this session is for images {expected}, got {images.shape}")
        return by_head(dict(zip(self.outputs, self._run(images), strict=True)), self.description)

    def prepare(self, image: Image.Image | str | os.PathLike[str]) -> NDArray[np.float32]:
        """Return an image as the model wants it, as a batch of one (1, C, H, W), as `registry.transforms` prepares it.

        Args:
            image: an image of Pillow's, of any mode, or the path of a file.

        Raises:
            ImageError: the file is no image.
            OptionError: the model's images have neither one nor three channels.
        """
        return preparing.prepare(_open_image(image), self.description.preprocessing)

    def __repr__(self) -> str:
        from featuretap.runtimes.choosing import format_timings

        chosen = f", fastest of: {format_timings(self.timings)}" if self.timings else ""
        return f"Session({self.description.name!r}, runtime={self.runtime!r}, outputs={self.outputs}{chosen})"


def open_file(
    catalogue: Catalogue,
    runtime: RuntimeSpec | None,
    path: Path,
    threads: int | None = None,
    precision: str = FLOAT32,
) -> Session:
    """Open an exported file, with the fastest runtime if it is None; see `Registry.session`.

    Raises:
        OptionError: the runtime needs PyTorch, does not open files of this kind, or does not have the precision.
        ExportError: the file cannot be read, or does not describe its model.
    """
    check_threads(threads)
    check_processor(precision)

    def make(runtime: RuntimeSpec) -> Session:
        find_opener(catalogue, runtime, path)
        with library_errors(f"{runtime.name!r} cannot open {str(path)!r}", "; export the model again"):
            return _open(catalogue, runtime, path, lambda metadata: read_metadata(path, metadata), threads, precision)

    if runtime:
        return make(runtime)
    return _choose_fastest(catalogue, repr(str(path)), make, path.suffix)


def open_model(
    catalogue: Catalogue,
    runtime: RuntimeSpec | None,
    source: str | os.PathLike[str] | BackboneSpec,
    pretrained: bool | str | os.PathLike[str] = True,
    arguments: Mapping[str, Any] | None = None,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    threads: int | None = None,
    precision: str = FLOAT32,
) -> Session:
    """Write the graph of a model from a checkpoint, and open it; see `Registry.session`.

    Args:
        catalogue: of the registry.
        runtime: that runs the graph; None for the fastest.
        source: path of a checkpoint, or what `Registry.build` takes.
        pretrained: as of `Registry.build`, for a name.
        arguments: of `Registry.build` or `Registry.load` besides, those that are None left out.
        size: (height, width) of the images in pixels; None for any.
        batch: number of images; None for any.
        threads: of the runtime.
        precision: in which it computes.

    Raises:
        OptionError: the runtime needs PyTorch or does not have the precision, or an invalid size, batch or number of
            threads.
        WeightsError: the checkpoint cannot be read without PyTorch, does not fit, or lacks the head.
        ExportError: a part of the model has no nodes.
    """
    check_threads(threads)
    check_sizes(size, batch)
    check_processor(precision)
    if runtime:
        _check_runtime(catalogue, runtime, precision)
    else:
        # Graphs are written with it, whatever runs them.
        check_extra(f"runtime={AUTO!r}", "onnxruntime", ("onnx",))
    fitted = fit_weights(catalogue, source, pretrained, arguments or {})
    return open_fitted(catalogue, runtime, *fitted, size=size, batch=batch, threads=threads, precision=precision)


def fit_weights(
    catalogue: Catalogue,
    source: str | os.PathLike[str] | BackboneSpec,
    pretrained: bool | str | os.PathLike[str],
    arguments: Mapping[str, Any],
) -> tuple[Request, FittedWeights]:
    """Return the request for a model and its weights as arrays; arguments as of `open_model`.

    Raises:
        OptionError: no weights were asked for.
        WeightsError: they cannot be read without PyTorch, do not fit, or lack the head.
    """
    request, checkpoint = _find_weights(catalogue, source, pretrained, arguments)
    if isinstance(request, MultiHeadRequest):
        fitted = fit_several_heads(request, checkpoint, catalogue)
    else:
        fitted = fit_checkpoint(request, checkpoint, catalogue)
    if fitted.head.is_random:
        raise WeightsError(
            f"{request.label}: {fitted.head.warning}; train it first: a session runs trained weights only"
        )
    return request, fitted


def open_fitted(
    catalogue: Catalogue,
    runtime: RuntimeSpec | None,
    request: Request,
    fitted: FittedWeights,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    threads: int | None = None,
    precision: str = FLOAT32,
) -> Session:
    """Return a session for a model with weights that `fit_weights` returned; arguments as of `open_model`.

    Raises:
        ExportError: a part of the model has no nodes.
    """
    proto, signature = write_model(request, fitted, size, batch)
    graph = proto.SerializeToString()
    # It is as large as the weights.
    del proto

    def make(runtime: RuntimeSpec) -> Session:
        return _open(catalogue, runtime, graph, lambda _: (signature, fitted.description), threads, precision)

    return make(runtime) if runtime else _choose_fastest(catalogue, request.label, make)


def is_exported(catalogue: Catalogue, source: object) -> bool:
    """Return whether a model is asked for by the path of an exported file."""
    if not isinstance(source, str | os.PathLike) or is_address(source):
        return False
    return Path(source).suffix in {suffix for runtime in catalogue.runtimes for suffix in runtime.opens}


def write_model(
    request: Request,
    fitted: FittedWeights,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
) -> tuple[onnx.ModelProto, Signature]:
    """Return the graph of a model with its weights, without metadata, and its signature.

    Raises:
        ExportError: a part of the model has no nodes.
    """
    description, spec = fitted.description, request.spec
    outputs = outputs_by_spec(description)
    try:
        proto = write_graph(spec, fitted.tensors, fitted.norm_eps, description.preprocessing, size=size, batch=batch)
    except NodesError as error:
        raise ExportError(
            f"{request.label} needs PyTorch: {error}; build it, and give it to registry.compile or registry.export"
        ) from error
    fitted.check_unchanged()
    has_taps = isinstance(spec, BackboneSpec) or (isinstance(spec, ModelSpec) and bool(spec.head.taps))
    taps = spec.taps if has_taps else {}
    channels = backbone_of(spec).in_channels
    return proto, Signature(outputs, outputs not in SINGLE_OUTPUTS, channels, taps, size, batch)


def _find_weights(
    catalogue: Catalogue,
    source: str | os.PathLike[str] | BackboneSpec,
    pretrained: bool | str | os.PathLike[str],
    arguments: Mapping[str, Any],
) -> tuple[Request, Checkpoint]:
    """Return the request for a model, and the checkpoint of its weights, read as arrays."""
    stated = {name: value for name, value in arguments.items() if value is not None}
    if is_location(source):
        checkpoint = open_checkpoint(WeightsSource(path=source), catalogue, "np")
        replaced: dict[str, Any] = {name: stated.pop(name) for name in ARGUMENTS & set(stated)}
        if has_several_heads(checkpoint):
            if not replaced:
                return resolve_multi_head_checkpoint(checkpoint, catalogue, stated), checkpoint
            checkpoint = select_part(checkpoint, replaced)
        return resolve_checkpoint(checkpoint, catalogue, None, replaced, stated), checkpoint
    heads = stated.get("head")
    if heads is not None and not isinstance(heads, str):
        del stated["head"]
        several = resolve_multi_head_request(catalogue, source, heads, pretrained=pretrained, **stated)  # type: ignore[arg-type]
        return several, _open_weights(several.backbone, catalogue)
    request = resolve_request(catalogue, source, pretrained=pretrained, **stated)  # type: ignore[arg-type]
    return request, _open_weights(request, catalogue)


def _open_weights(request: BuildRequest, catalogue: Catalogue) -> Checkpoint:
    if request.weights is None:
        raise OptionError(f"a session runs trained weights, and {request.label} was asked for without; give pretrained")
    if request.weights.factory_tag:
        raise ExportError(f"{request.label} has weights that only PyTorch reads; build it, and compile that")
    return checkpoint_for(open_checkpoint(request.weights, catalogue, "np"), request.description.head)


def _check_runtime(catalogue: Catalogue, runtime: RuntimeSpec, precision: str) -> None:
    if not runtime.session:
        raise OptionError(
            f"the runtime {runtime.name!r} needs PyTorch; for a session take 'onnxruntime' or 'openvino', or give the "
            "model to registry.compile"
        )
    check_runtime_precision(catalogue, runtime, precision)
    runtime.check_installed()


def _open(
    catalogue: Catalogue,
    runtime: RuntimeSpec,
    model: bytes | Path,
    describe: Callable[[Mapping[str, str]], tuple[Signature, Description]],
    threads: int | None,
    precision: str,
) -> Session:
    """Open a graph; `describe` maps its metadata to signature and description."""
    _check_runtime(catalogue, runtime, precision)
    open_session: Callable[..., Opened] = partial(load(runtime.session), model, threads=threads or default_threads())
    opened = open_session()
    signature, description = describe(opened.metadata)
    if precision != FLOAT32:
        exact, opened = opened, open_session(precision=precision)
        agreement = _compare(exact, opened, signature, precision)
        check_agreement(repr(description.name), agreement, precision)
        description = replace(description, agreement=agreement)
    return Session(opened.run, signature, description, runtime.name)


def _compare(exact: Opened, opened: Opened, signature: Signature, precision: str) -> dict[str, Agreement]:
    """Return the agreement of outputs with those in float32, on random images."""
    if signature.detects:
        raise OptionError(
            f"detections in precision={precision!r} cannot be compared with those in {FLOAT32}, whose number differs; "
            "give the model to registry.compile, which compares what they are selected from"
        )
    images = random_images((signature.batch or COMPARED, *signature.usual_shape[1:]))
    return measure_agreement(pairs_of_images(signature.outputs, exact.run(images), opened.run(images)))


def _usual_images(signature: Signature) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(signature.usual_shape, np.float32)


def _choose_fastest(
    catalogue: Catalogue, label: str, make: Callable[[RuntimeSpec], Session], suffix: str = ""
) -> Session:
    """Return the fastest session of the runtimes that open files of a suffix."""
    # Importing it would slow down every session by a fiftieth of a second.
    from featuretap.runtimes.choosing import choose_fastest

    runtimes = [runtime for runtime in catalogue.runtimes if runtime.quick and runtime.session]
    able = [runtime for runtime in runtimes if not suffix or suffix in runtime.opens]
    fastest, timings = choose_fastest(label, able, make, lambda one: partial(one, _usual_images(one._signature)))
    fastest.timings = timings
    return fastest


def default_threads() -> int:
    """Return the number of threads for a runtime: OMP_NUM_THREADS, or the processors that this process may use."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    if stated.isdecimal() and int(stated):
        return int(stated)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open_image(image: Any) -> Any:
    return read_image(Path(image)) if isinstance(image, str | os.PathLike) else image
