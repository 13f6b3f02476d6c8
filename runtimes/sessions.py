"""`registry.session`: torch-free models that map NumPy arrays to NumPy arrays."""

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
"""Number of random images for comparing precisions, unless the batch size is fixed."""


class Session:
    """A model that a runtime runs without PyTorch. It maps images (N, C, H, W) to outputs by name.

    Args:
        run: function that maps images to the outputs in order.
        signature: inputs and outputs of the model.
        description: the model's description, including preprocessing.
        runtime: name of the runtime.

    Attributes:
        outputs: names of the outputs, in order.
        taps: output → channels and stride, for backbones and pyramids; empty for other models.
        classes: class names, if known.
        size: (height, width) of the images in pixels, or None for any.
        batch: number of images per call, or None for any.
        timings: runtime → time per call, fastest first, if `runtime="auto"` selected the runtime; else empty.

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
        """Return the outputs for images.

        Args:
            images: float32 images (N, C, H, W), as `prepare` returns them.

        Returns:
            Output → array. Models with several heads return head → output → array.

        Raises:
            OptionError: the shape or dtype is wrong.
        """
        if not isinstance(images, np.ndarray) or images.dtype != np.float32:
            found = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
            raise OptionError(f"a session takes a float32 array of images (N, C, H, W), got {found}")
        if expected := self._signature.mismatch(images.shape):
            raise OptionError(f"this session takes images {expected}, got {images.shape}")
        return by_head(dict(zip(self.outputs, self._run(images), strict=True)), self.description)

    def prepare(self, image: Image.Image | str | os.PathLike[str]) -> NDArray[np.float32]:
        """Preprocess an image as `registry.transforms` does.

        Args:
            image: a Pillow image of any mode, or the path of an image file.

        Returns:
            A batch of one image (1, C, H, W).

        Raises:
            ImageError: the file is not a readable image.
            OptionError: the model takes neither one nor three channels.
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
    """Open an exported file; see `Registry.session`.

    Args:
        catalogue: the registry's catalogue.
        runtime: the runtime; None selects the fastest.
        path: the exported file.
        threads: number of runtime threads; None for the default.
        precision: precision of the computation.

    Returns:
        The session.

    Raises:
        OptionError: the runtime needs PyTorch, does not open files of this kind, or does not support the precision.
        ExportError: the file cannot be read or has no featuretap metadata.
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
    """Write the graph of a checkpoint's model and open it; see `Registry.session`.

    Args:
        catalogue: the registry's catalogue.
        runtime: the runtime; None selects the fastest.
        source: path of a checkpoint, or the first argument of `Registry.build`.
        pretrained: as in `Registry.build`.
        arguments: other arguments of `Registry.build` or `Registry.load`; None values are ignored.
        size: (height, width) of the images in pixels; None for any.
        batch: number of images; None for any.
        threads: number of runtime threads; None for the default.
        precision: precision of the computation.

    Returns:
        The session.

    Raises:
        OptionError: the runtime needs PyTorch or does not support the precision, or the size, batch or number of
            threads is invalid.
        WeightsError: the checkpoint cannot be read without PyTorch, does not match the model, or lacks the head.
        ExportError: a part of the model has no ONNX nodes.
    """
    check_threads(threads)
    check_sizes(size, batch)
    check_processor(precision)
    if runtime:
        _check_runtime(catalogue, runtime, precision)
    else:
        # All runtimes read ONNX graphs, which the onnx package writes.
        check_extra(f"runtime={AUTO!r}", "onnxruntime", ("onnx",))
    fitted = fit_weights(catalogue, source, pretrained, arguments or {})
    return open_fitted(catalogue, runtime, *fitted, size=size, batch=batch, threads=threads, precision=precision)


def fit_weights(
    catalogue: Catalogue,
    source: str | os.PathLike[str] | BackboneSpec,
    pretrained: bool | str | os.PathLike[str],
    arguments: Mapping[str, Any],
) -> tuple[Request, FittedWeights]:
    """Resolve a model and read its weights as arrays.

    Args:
        catalogue: the registry's catalogue.
        source: path of a checkpoint, or the first argument of `Registry.build`.
        pretrained: as in `Registry.build`.
        arguments: other arguments of `Registry.build` or `Registry.load`; None values are ignored.

    Returns:
        The build request and the weights.

    Raises:
        OptionError: no weights were requested.
        WeightsError: the weights cannot be read without PyTorch, do not match the model, or lack the head.
    """
    request, checkpoint = _find_weights(catalogue, source, pretrained, arguments)
    if isinstance(request, MultiHeadRequest):
        fitted = fit_several_heads(request, checkpoint, catalogue)
    else:
        fitted = fit_checkpoint(request, checkpoint, catalogue)
    if fitted.head.is_random:
        raise WeightsError(
            f"{request.label}: {fitted.head.warning}; a session needs trained weights, so train the head first"
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
    """Open a model whose weights `fit_weights` returned.

    Args:
        catalogue: the registry's catalogue.
        runtime: the runtime; None selects the fastest.
        request: the build request.
        fitted: the weights.
        size: (height, width) of the images in pixels; None for any.
        batch: number of images; None for any.
        threads: number of runtime threads; None for the default.
        precision: precision of the computation.

    Returns:
        The session.

    Raises:
        ExportError: a part of the model has no ONNX nodes.
    """
    proto, signature = write_model(request, fitted, size, batch)
    graph = proto.SerializeToString()
    # The graph is as large as the weights; one copy is enough.
    del proto

    def make(runtime: RuntimeSpec) -> Session:
        return _open(catalogue, runtime, graph, lambda _: (signature, fitted.description), threads, precision)

    return make(runtime) if runtime else _choose_fastest(catalogue, request.label, make)


def is_exported(catalogue: Catalogue, source: object) -> bool:
    """Return whether `source` is the path of an exported file."""
    if not isinstance(source, str | os.PathLike) or is_address(source):
        return False
    return Path(source).suffix in {suffix for runtime in catalogue.runtimes for suffix in runtime.opens}


def write_model(
    request: Request,
    fitted: FittedWeights,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
) -> tuple[onnx.ModelProto, Signature]:
    """Write the graph of a model, without metadata.

    Args:
        request: the build request.
        fitted: the weights.
        size: (height, width) of the images in pixels; None for any.
        batch: number of images; None for any.

    Returns:
        The ONNX model and its signature.

    Raises:
        ExportError: a part of the model has no ONNX nodes.
    """
    description, spec = fitted.description, request.spec
    outputs = outputs_by_spec(description)
    try:
        proto = write_graph(spec, fitted.tensors, fitted.norm_eps, description.preprocessing, size=size, batch=batch)
    except NodesError as error:
        raise ExportError(
            f"{request.label} needs PyTorch: {error}; build it and use registry.compile or registry.export"
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
    """Return the build request of a model and the checkpoint with its weights."""
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
        raise OptionError(f"a session needs trained weights; set pretrained for {request.label}")
    if request.weights.factory_tag:
        raise ExportError(
            f"only PyTorch reads the weights of {request.label}; build it and compile it with registry.compile"
        )
    return checkpoint_for(open_checkpoint(request.weights, catalogue, "np"), request.description.head)


def _check_runtime(catalogue: Catalogue, runtime: RuntimeSpec, precision: str) -> None:
    if not runtime.session:
        raise OptionError(
            f"the runtime {runtime.name!r} needs PyTorch; use 'onnxruntime' or 'openvino' for a session, or use "
            "registry.compile"
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
    """Open a graph. `describe` maps the file's metadata to signature and description."""
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
    """Return the agreement with float32 on random images."""
    if signature.detects:
        raise OptionError(
            f"a session cannot compare detections in precision={precision!r} with {FLOAT32}, since their number may "
            "differ; use registry.compile, which compares the predictions before box selection"
        )
    images = random_images((signature.batch or COMPARED, *signature.usual_shape[1:]))
    return measure_agreement(pairs_of_images(signature.outputs, exact.run(images), opened.run(images)))


def _usual_images(signature: Signature) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(signature.usual_shape, np.float32)


def _choose_fastest(
    catalogue: Catalogue, label: str, make: Callable[[RuntimeSpec], Session], suffix: str = ""
) -> Session:
    """Return the fastest session among the runtimes that open files with a suffix."""
    # This import takes 20 ms, which other sessions do not need.
    from featuretap.runtimes.choosing import choose_fastest

    runtimes = [runtime for runtime in catalogue.runtimes if runtime.quick and runtime.session]
    able = [runtime for runtime in runtimes if not suffix or suffix in runtime.opens]
    fastest, timings = choose_fastest(label, able, make, lambda one: partial(one, _usual_images(one._signature)))
    fastest.timings = timings
    return fastest


def default_threads() -> int:
    """Return OMP_NUM_THREADS if it is set, else the number of processors available to this process."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    if stated.isdecimal() and int(stated):
        return int(stated)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open_image(image: Any) -> Any:
    return read_image(Path(image)) if isinstance(image, str | os.PathLike) else image
