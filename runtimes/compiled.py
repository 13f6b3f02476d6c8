"""`registry.compile` and `registry.export`: models that a runtime runs, and the files that it opens.

A file is kept only if the runtime computes what the model does.
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
from featuretap.runtimes.model_graphs import written_or_traced
from featuretap.runtimes.outputs import join_images, restore
from featuretap.runtimes.precision import check_runtime_precision
from featuretap.runtimes.signature import (
    DEVICE,
    DTYPE,
    Signature,
    check_threads,
    detector_of,
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
    """A model that a runtime runs: images (N, C, H, W) → what the model itself returns, without gradients.

    It has no parameters, and can be neither trained nor saved; the model that it was made of can.

    Attributes:
        description: the model's, preprocessing included.
        runtime: name of the runtime.
        outputs: names of the outputs, in order.
        taps: output → channels and stride, of a backbone or a pyramid.
        size: (height, width) of its images in pixels, or None for any.
        batch: number of images of a call, or None for any.
        timings: runtime → time of a call, fastest first, where `runtime="auto"` chose; empty otherwise.
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
        """The description of the model."""
        return self._description

    def forward(self, images: Tensor) -> Any:
        """Return the outputs.

        Raises:
            OptionError: images of another shape, type or device than the model was compiled for.
        """
        if self.description.preprocessing.inside and isinstance(images, list | tuple):
            # Images of different sizes are called one by one.
            return join_images([self(image[None]) for image in images])
        self._check(images)
        outputs = dict(zip(self.outputs, self._run(images.detach()), strict=True))
        return restore(outputs, self.description, as_dict=self._signature.as_dict)

    def train(self, mode: bool = True) -> Self:
        """Refuse to be trained.

        Raises:
            OptionError: `mode` is true.
        """
        if mode:
            raise OptionError("a compiled model cannot be trained; train the model that it was made of")
        return super().train(False)

    def extra_repr(self) -> str:
        """Return name, runtime and outputs for `repr`."""
        chosen = f", fastest of: {format_timings(self.timings)}" if self.timings else ""
        return f"{self.description.name!r}, runtime={self.runtime!r}, outputs={self.outputs}{chosen}"

    def __reduce__(self) -> Any:
        raise OptionError(
            "a compiled model can be neither copied nor pickled; copy the model that it was made of, or "
            "registry.export it to a file"
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
    """Compile a model, for the fastest runtime if it is None; see `Registry.compile`.

    Raises:
        HeadError: the runtime does not take detectors.
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
            f"the head {detector_of(prepared.description)!r} finds objects in lists of images, which the runtime "
            f"{runtime.name!r} does not take; take 'onnxruntime'"
        )

    def make(exportable: Exportable) -> tuple[Run, Description]:
        log_steps(f"compiling {prepared.label} for {runtime.name!r}", None)
        with convert_errors(f"runtime {runtime.name!r}", runtime.factory):
            run: Run = load(runtime.factory)(exportable, threads=threads)
        log_steps(f"comparing {runtime.name!r} with the model", None)
        return run, replace(prepared.description, agreement=verify_outputs(exportable, run))

    run, description = written_or_traced(prepared, make)
    images = prepared.images
    return CompiledModel(run, prepared.signature, description, runtime.name, str(images.device), images.dtype)


def _choose_fastest(
    label: str, runtimes: Iterable[RuntimeSpec], make: Callable[[RuntimeSpec], CompiledModel]
) -> CompiledModel:
    fastest, timings = choose_fastest(label, runtimes, make, _usual_call)
    fastest.timings = timings
    return fastest


def _usual_call(compiled: CompiledModel) -> Callable[[], object]:
    """Return a call of usual random images, whose outputs are there when it ends."""
    device = compiled._device
    images = torch.randn(compiled._signature.usual_shape, generator=torch.Generator().manual_seed(0))
    images = images.to(device, compiled._dtype)

    def call() -> None:
        compiled(images)
        if device.type != "cpu":
            # Other devices compute on when Python has the outputs already.
            torch.accelerator.synchronize()

    return call


def open_file(
    catalogue: Catalogue, runtime: RuntimeSpec | None, path: Path, threads: int | None = None
) -> CompiledModel:
    """Open an exported file with a runtime, the fastest if it is None; see `Registry.compile`.

    Raises:
        OptionError: a file that the runtime does not open.
        ExportError: a file that cannot be read, or that does not describe its model.
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
        raise ExportError(f"{str(path)!r} does not say for which images it is; export the model again")
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
    """Write a model as a file for a runtime; see `Registry.export`. `begin` is called with the label of each step.

    Raises:
        HeadError: the format holds no detector among several heads.
        ExportError: the file lacks metadata. A file that was at the path before is unchanged.
    """
    form = resolve_format(path, format)
    form.check_installed()
    description = unwrap(model, "registry.export writes").description
    check_heads_are_written(description)
    if description.preprocessing.inside and not (form.session and outputs_by_spec(description)):
        if description.heads:
            raise HeadError(
                f"the head {detector_of(description)!r} finds objects, which {form.name} files hold of models with one "
                "head only; take onnx or openvino, or export the heads one by one with registry.select_head"
            )
        form = form.of_detectors(description.head)
    with keep_on_success(path) as written:
        prepared: Exportable = load(f"featuretap.runtimes.{form.prepare}")(model, size, batch)
        prepared = replace(prepared, session=form.session)
        if prepared.session:
            prepared.check_on_cpu(form.extra)
        written_or_traced(prepared, lambda model: write_verified(catalogue, model, form, written, begin))
    return path


def write_verified(catalogue: Catalogue, prepared: Exportable, form: Format, written: Path, begin: Begin) -> None:
    """Write a file, read it again, and compare it with the model.

    Args:
        catalogue: of the registry.
        prepared: the model, to be written from its spec or traced.
        form: of the file.
        written: path of the file, in a temporary folder.
        begin: called with the label of each step.

    Raises:
        ExportError: the model cannot be written, or the file computes something else.
    """
    write, read, verify = (load(f"featuretap.runtimes.{name}") for name in (form.writer, form.reader, form.verifier))
    metadata = metadata_of_model(catalogue, prepared)
    begin(f"{'writing' if form.session and not prepared.traced else 'tracing'} {form.name}", None)
    with library_errors(f"cannot write {prepared.label} as {form.name}"):
        write(prepared, written, metadata)
    with library_errors(f"the {form.name} file was written, and cannot be read again"):
        found, run = read(written, threads=None)
    check_metadata(form.name, metadata, found)
    begin(f"comparing {form.name} with the model", None)
    with library_errors(f"the {form.name} file was written, and does not run"):
        verify(prepared, run)


def metadata_of_model(catalogue: Catalogue, model: Exportable) -> dict[str, str]:
    """Return the metadata of an exported file: description and signature of the model, device and dtype of images."""
    device, dtype = model.images.device.type, str(model.images.dtype).removeprefix("torch.")
    return export_metadata(catalogue, model.description, model.signature, device, dtype)
