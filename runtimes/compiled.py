"""`registry.compile`: a model that a runtime computes, called as the model is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from featuretap.runtimes.exportable import exportable
from featuretap.runtimes.signature import DEVICE, DTYPE, KEY, Signature
from featuretap.runtimes.verifying import verify
from featuretap.specs import RuntimeSpec, Tap
from featuretap.specs.description import Description
from featuretap.support.errors import ExportError, FeaturetapError, MissingExtraError, OptionError
from featuretap.support.extras import missing_modules
from featuretap.support.import_strings import blamed, load
from featuretap.weights.metadata import read_record

if TYPE_CHECKING:
    from featuretap.registry.registry import Registry

__all__ = ["CompiledModel", "check_installed", "compile_model", "open_file"]

Run = Callable[[Tensor], Sequence[Tensor]]

DEVICES = ("cpu", "cuda", "mps", "xpu")


class CompiledModel(nn.Module):
    """A model in the hands of a runtime: images (N, C, H, W) → what the model itself returns, without gradients.

    It has no parameters, and can neither be trained nor saved; the model that it was made of can.

    Attributes:
        description: what the model is, preprocessing included.
        runtime: name of the runtime.
        outputs: names of what it returns, in order.
        taps: output → channels and stride, of a backbone or a pyramid.
    """

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
        if signature.taps:
            self.taps: dict[str, Tap] = dict(signature.taps)
        super().train(False)

    @property
    def description(self) -> Description:
        """What the model is."""
        return self._description

    def forward(self, images: Tensor) -> Any:
        """Return the outputs.

        Raises:
            OptionError: images of another shape, type or device than the model was compiled for.
        """
        self._check(images)
        made = self._run(images.detach())
        return dict(zip(self.outputs, made, strict=True)) if self._signature.as_dict else made[0]

    def train(self, mode: bool = True) -> CompiledModel:
        """Refuse to be trained.

        Raises:
            OptionError: `mode` is true.
        """
        if mode:
            raise OptionError("a compiled model cannot be trained; train the model that it was made of")
        return super().train(False)

    def extra_repr(self) -> str:
        """Return what is printed of it."""
        return f"{self.description.name!r}, runtime={self.runtime!r}, outputs={self.outputs}"

    def __reduce__(self) -> Any:
        raise OptionError(
            "a compiled model can be neither copied nor pickled; copy the model that it was made of, or "
            "registry.export it to a file"
        )

    def _check(self, images: Any) -> None:
        if not isinstance(images, Tensor):
            raise OptionError(f"a compiled model takes a tensor of images (N, C, H, W), got {type(images).__name__}")
        shape = tuple(images.shape)
        wanted = self._signature.mismatch(shape)
        if wanted:
            raise OptionError(f"this model was compiled for images {wanted}, got {shape}")
        if images.dtype != self._dtype or images.device.type != self._device.type:
            raise OptionError(
                f"this model was compiled for images of {self._dtype} on {self._device}, got {images.dtype} on "
                f"{images.device}"
            )


def compile_model(
    runtime: RuntimeSpec,
    model: nn.Module,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    threads: int | None = None,
) -> CompiledModel:
    """Compile a model; see `Registry.compile`."""
    _check_threads(threads)
    check_installed(runtime)
    prepared = exportable(model, size, batch)
    with blamed(f"runtime {runtime.name!r}", runtime.factory):
        run = load(runtime.factory)(prepared, threads=threads)
    verify(prepared, run)
    images = prepared.images
    return CompiledModel(run, prepared.signature, prepared.description, runtime.name, str(images.device), images.dtype)


def open_file(registry: Registry, runtime: RuntimeSpec, path: Path, threads: int | None = None) -> CompiledModel:
    """Open an exported file with a runtime; see `Registry.compile`.

    Raises:
        OptionError: a file that the runtime does not open.
        ExportError: a file that cannot be read, or that says nothing of its model.
    """
    _check_threads(threads)
    opener = runtime.opens.get(path.suffix)
    if opener is None:
        others = {name: registry.runtime(name).opens for name in registry.list_runtimes()}
        which = [name for name, opens in others.items() if path.suffix in opens]
        there = f"; {' and '.join(map(repr, which))} can" if which else "; export the model as .onnx"
        files = f"{path.suffix} files" if path.suffix else repr(str(path))
        raise OptionError(f"the runtime {runtime.name!r} does not open {files}{there}")
    check_installed(runtime)
    if not path.is_file():
        raise ExportError(f"there is no file {str(path)!r}; featuretap export NAME {path.name} writes one")
    try:
        metadata, run = load(opener)(path, threads=threads)
    except FeaturetapError:
        raise
    except Exception as error:
        # Each runtime has errors of its own for files that it cannot read.
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"{runtime.name!r} cannot open {str(path)!r} ({reason}); export the model again") from error
    if KEY not in metadata:
        raise ExportError(
            f"{str(path)!r} does not say what model it is; open it with its runtime's own functions, or write it with "
            "registry.export"
        )
    record = read_record(path, {key: value for key, value in metadata.items() if key.startswith("featuretap.")})
    assert record is not None
    device, dtype = metadata.get(DEVICE, ""), getattr(torch, metadata.get(DTYPE, ""), None)
    if device not in DEVICES or not isinstance(dtype, torch.dtype):
        raise ExportError(f"{str(path)!r} does not say for which images it is; export the model again")
    return CompiledModel(run, Signature.read(metadata[KEY]), record.description, runtime.name, device, dtype)


def check_installed(runtime: RuntimeSpec) -> None:
    """Say what is missing for a runtime, before anything of it is imported.

    Raises:
        MissingExtraError: a package is not installed.
    """
    absent = missing_modules(runtime.modules)
    if absent:
        brought = repr(runtime.requires) if runtime.requires else " ".join(absent)
        raise MissingExtraError(f"the runtime {runtime.name!r} needs {', '.join(absent)}; pip install {brought}")


def _check_threads(threads: Any) -> None:
    if threads is not None and not (type(threads) is int and threads > 0):
        raise OptionError(f"threads={threads!r} is no number of threads; give 1 or more, or None for torch's")
