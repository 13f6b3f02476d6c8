"""`registry.compile` and `registry.export`: compiled models and exported files.

Both compare the result with the model and fail if the outputs differ.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from featuretap.catalogue.catalogue import Catalogue
from featuretap.models.built import unwrap
from featuretap.runtimes.choosing import choose_fastest, format_timings
from featuretap.runtimes.exportable import Exportable, Run, check_heads_are_written, prepare_model
from featuretap.runtimes.exported_files import check_metadata, export_metadata, keep_on_success
from featuretap.runtimes.formats import Format, resolve_format
from featuretap.runtimes.model_graphs import write_or_trace
from featuretap.runtimes.outputs import join_images, restore
from featuretap.runtimes.precision import check_runtime_precision
from featuretap.runtimes.signature import (
    DEVICE,
    DTYPE,
    Signature,
    check_threads,
    find_detector,
    find_opener,
    library_errors,
    outputs_by_spec,
    read_metadata,
)
from featuretap.runtimes.verification import verify_outputs
from featuretap.specs import RuntimeSpec, Tap
from featuretap.specs.description import Description
from featuretap.specs.runtime import FLOAT32
from featuretap.support.errors import ExportError, HeadError, OptionError
from featuretap.support.import_strings import convert_errors, load
from featuretap.support.progress import Begin, log_steps
from featuretap.support.timing import Timing

DEVICES = ("cpu", "cuda", "mps", "xpu")


class CompiledModel(nn.Module):
    """A model that a runtime runs. It maps images (N, C, H, W) to the outputs of the original model, without gradients.

    A compiled model has no parameters and cannot be trained or saved. Train or save the original model instead.

    Args:
        run: function that runs the model.
        signature: inputs and outputs of the model.
        description: the model's description, including preprocessing.
        runtime: name of the runtime.
        device: device of the images.
        dtype: dtype of the images.

    Attributes:
        outputs: names of the outputs, in order.
        taps: output → channels and stride, for backbones and pyramids.
        size: (height, width) of the images in pixels, or None for any.
        batch: number of images per call, or None for any.
        timings: runtime → time per call, fastest first, if `runtime="auto"` selected the runtime; else empty.
    """

    timings: Mapping[str, Timing] = MappingProxyType({})

    def __init__(
        self, run: Run, signature: Signature, description: Description, runtime: str, device: str, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self._run = run
        self._signature = signature
        self._description = description
        self._device, self._dtype = torch.device(device), dtype
        self.runtime = runtime
        self.outputs = signature.outputs
        self.size, self.batch = signature.size, signature.batch
        if signature.taps:
            self.taps: dict[str, Tap] = dict(signature.taps)
        super().train(False)

    @property
    def description(self) -> Description:
        """The model's description."""
        return self._description

    def forward(self, images: Tensor) -> Any:
        """Return the outputs for images (N, C, H, W). Detectors also take a list of images (C, H, W).

        Args:
            images: preprocessed images, of the shape, dtype and device that the model was compiled for.

        Returns:
            The outputs, as the original model returns them.

        Raises:
            OptionError: the shape, dtype or device is wrong.
        """
        if self.description.preprocessing.inside and isinstance(images, list | tuple):
            # The images may differ in size, so that they cannot be stacked.
            return join_images([self(image[None]) for image in images])
        self._check(images)
        outputs = dict(zip(self.outputs, self._run(images.detach()), strict=True))
        return restore(outputs, self.description, as_dict=self._signature.as_dict)

    def train(self, mode: bool = True) -> Self:
        """Raise an error for `mode=True`, since compiled models cannot be trained.

        Args:
            mode: whether to switch to training mode.

        Returns:
            The model itself.

        Raises:
            OptionError: `mode` is True.
        """
        if mode:
            raise OptionError("a compiled model cannot be trained; train the original model")
        return super().train(False)

    def extra_repr(self) -> str:
        """Return the name, runtime and outputs for `repr`."""
        chosen = f", fastest of: {format_timings(self.timings)}" if self.timings else ""
        return f"{self.description.name!r}, runtime={self.runtime!r}, outputs={self.outputs}{chosen}"

    def __reduce__(self) -> Any:
        raise OptionError(
            "a compiled model cannot be copied or pickled; copy the original model, or write a file with "
            "registry.export"
        )

    def _check(self, images: Any) -> None:
        if not isinstance(images, Tensor):
            raise OptionError(f"a compiled model takes a tensor of images (N, C, H, W), got {type(images).__name__}")
        shape = tuple(images.shape)
        if expected := self._signature.mismatch(shape):
            raise OptionError(f"this model was compiled for images {expected}, got {shape}")
        if images.dtype != self._dtype or images.device.type != self._device.type:
            raise OptionError(
                f"this model was compiled for images of {self._dtype} on {self._device}, got {images.dtype} on "
                f"{images.device}"
            )


def compile_model(
    catalogue: Catalogue,
    runtime: RuntimeSpec | None,
    model: nn.Module,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    threads: int | None = None,
    precision: str = FLOAT32,
) -> CompiledModel:
    """Compile a model; see `Registry.compile`.

    Args:
        catalogue: the registry's catalogue.
        runtime: the runtime; None selects the fastest.
        model: a model built by featuretap.
        size: (height, width) of the images in pixels; None for any.
        batch: number of images; None for any.
        threads: number of runtime threads; None for the default.
        precision: precision of the computation.

    Returns:
        The compiled model.

    Raises:
        HeadError: the runtime does not support detectors.
        FeaturetapError: see `Registry.compile`.
    """
    check_threads(threads)
    prepared = replace(prepare_model(model, size, batch), precision=precision)
    prepared.check_precision()

    def make(runtime: RuntimeSpec) -> CompiledModel:
        check_runtime_precision(catalogue, runtime, precision)
        runtime.check_installed()
        return _compile(runtime, prepared, threads)

    if runtime:
        return make(runtime)
    return _choose_fastest(prepared.label, filter(attrgetter("quick"), catalogue.runtimes), make)


def _compile(runtime: RuntimeSpec, prepared: Exportable, threads: int | None) -> CompiledModel:
    prepared = replace(prepared, session=runtime.session)
    if prepared.session:
        prepared.check_on_cpu(runtime.name)
    elif prepared.detects:
        raise HeadError(
            f"the runtime {runtime.name!r} does not support detectors such as {find_detector(prepared.description)!r}; "
            "use 'onnxruntime'"
        )

    def make(exportable: Exportable) -> tuple[Run, Description]:
        log_steps(f"compiling {prepared.label} for {runtime.name!r}", None)
        with convert_errors(f"runtime {runtime.name!r}", runtime.factory):
            run: Run = load(runtime.factory)(exportable, threads=threads)
        log_steps(f"comparing {runtime.name!r} with the model", None)
        return run, replace(prepared.description, agreement=verify_outputs(exportable, run))

    run, description = write_or_trace(prepared, make)
    images = prepared.images
    return CompiledModel(run, prepared.signature, description, runtime.name, str(images.device), images.dtype)


def _choose_fastest(
    label: str, runtimes: Iterable[RuntimeSpec], make: Callable[[RuntimeSpec], CompiledModel]
) -> CompiledModel:
    fastest, timings = choose_fastest(label, runtimes, make, _usual_call)
    fastest.timings = timings
    return fastest


def _usual_call(compiled: CompiledModel) -> Callable[[], object]:
    """Return a call on random images that ends only when the outputs have been computed."""
    device = compiled._device
    images = torch.randn(compiled._signature.usual_shape, generator=torch.Generator().manual_seed(0))
    images = images.to(device, compiled._dtype)

    def call() -> None:
        compiled(images)
        if device.type != "cpu":
            # Calls on other devices return before the computation ends.
            torch.accelerator.synchronize()

    return call


def open_file(
    catalogue: Catalogue, runtime: RuntimeSpec | None, path: Path, threads: int | None = None
) -> CompiledModel:
    """Open an exported file; see `Registry.compile`.

    Args:
        catalogue: the registry's catalogue.
        runtime: the runtime; None selects the fastest.
        path: the exported file.
        threads: number of runtime threads; None for the default.

    Returns:
        The compiled model.

    Raises:
        OptionError: the runtime does not open files of this kind.
        ExportError: the file cannot be read or has no featuretap metadata.
    """
    check_threads(threads)
    if runtime:
        return _open_file(catalogue, runtime, path, threads)
    able = (candidate for candidate in catalogue.runtimes if candidate.quick and path.suffix in candidate.opens)
    return _choose_fastest(repr(str(path)), able, lambda candidate: _open_file(catalogue, candidate, path, threads))


def _open_file(catalogue: Catalogue, runtime: RuntimeSpec, path: Path, threads: int | None) -> CompiledModel:
    opener = find_opener(catalogue, runtime, path)
    with library_errors(f"{runtime.name!r} cannot open {str(path)!r}", "; export the model again"):
        metadata, run = load(opener)(path, threads=threads)
    signature, description = read_metadata(path, metadata)
    device, dtype = metadata.get(DEVICE, ""), getattr(torch, metadata.get(DTYPE, ""), None)
    if device not in DEVICES or not isinstance(dtype, torch.dtype):
        raise ExportError(f"{str(path)!r} does not record the device and dtype of its images; export the model again")
    return CompiledModel(run, signature, description, runtime.name, device, dtype)


def export(
    catalogue: Catalogue,
    model: nn.Module,
    path: Path,
    format: str | None = None,  # noqa: A002 (the public name)
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    begin: Begin = log_steps,
) -> Path:
    """Write a model as a file for a runtime; see `Registry.export`.

    Args:
        catalogue: the registry's catalogue.
        model: a model built by featuretap.
        path: path of the file.
        format: name of the format; None selects it by the suffix.
        size: (height, width) of the images in pixels; None for any.
        batch: number of images; None for any.
        begin: called with the label of each progress step.

    Returns:
        `path`.

    Raises:
        HeadError: the format does not support detectors in models with several heads.
        ExportError: the model cannot be exported. An existing file at `path` is kept.
    """
    form = resolve_format(path, format)
    form.check_installed()
    description = unwrap(model, "registry.export writes").description
    check_heads_are_written(description)
    if description.preprocessing.inside and not (form.session and outputs_by_spec(description)):
        if description.heads:
            raise HeadError(
                f"{form.name} files do not support the detector {find_detector(description)!r} together with other "
                "heads; use onnx or openvino, or export each head separately with registry.select_head"
            )
        form = form.of_detectors(description.head)
    with keep_on_success(path) as written:
        prepared: Exportable = load(f"featuretap.runtimes.{form.prepare}")(model, size, batch)
        prepared = replace(prepared, session=form.session)
        if prepared.session:
            prepared.check_on_cpu(form.extra)
        write_or_trace(prepared, lambda model: write_verified(catalogue, model, form, written, begin))
    return path


def write_verified(catalogue: Catalogue, prepared: Exportable, form: Format, written: Path, begin: Begin) -> None:
    """Write a file, open it, and compare its outputs with the model's.

    Args:
        catalogue: the registry's catalogue.
        prepared: the model.
        form: format of the file.
        written: path of the file in a temporary folder.
        begin: called with the label of each progress step.

    Raises:
        ExportError: the model cannot be written, or the outputs differ.
    """
    write, read, verify = (load(f"featuretap.runtimes.{name}") for name in (form.writer, form.reader, form.verifier))
    metadata = metadata_of_model(catalogue, prepared)
    begin(f"{'writing' if form.session and not prepared.traced else 'tracing'} {form.name}", None)
    with library_errors(f"cannot write {prepared.label} as {form.name}"):
        write(prepared, written, metadata)
    with library_errors(f"the written {form.name} file cannot be opened"):
        found, run = read(written, threads=None)
    check_metadata(form.name, metadata, found)
    begin(f"comparing {form.name} with the model", None)
    with library_errors(f"the written {form.name} file does not run"):
        verify(prepared, run)


def metadata_of_model(catalogue: Catalogue, model: Exportable) -> dict[str, str]:
    """Return the metadata of an exported model: description, signature, and device and dtype of its images."""
    device, dtype = model.images.device.type, str(model.images.dtype).removeprefix("torch.")
    return export_metadata(catalogue, model.description, model.signature, device, dtype)
