"""The formats that models are exported to, as data. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from featuretap.support.errors import HeadError, OptionError, did_you_mean
from featuretap.support.extras import check_extra

__all__ = ["FORMATS", "Format", "check_installed", "for_detectors", "format_of"]


@dataclass(frozen=True)
class Format:
    """A kind of file, and who writes and reads it.

    Args:
        name: what it is asked for by.
        suffixes: how the names of its files end.
        writer: import string of `writer(model, path, metadata)`, which writes an `Exportable` and strings about it.
        reader: import string of `reader(path, threads=None) -> (metadata, run)`, where `run` takes images
            (N, C, H, W) and returns the outputs in order.
        prepare: import string of `prepare(model, size, batch)`, which makes the `Exportable`.
        verifier: import string of `verifier(model, run)`, which compares the two.
        extra: of our distribution, with the packages that it needs.
        modules: the top-level modules of these.
    """

    name: str
    suffixes: tuple[str, ...]
    writer: str
    reader: str
    prepare: str = "featuretap.runtimes.exportable:exportable"
    verifier: str = "featuretap.runtimes.verifying:verify"
    extra: str = ""
    modules: tuple[str, ...] = ()

    @property
    def endings(self) -> str:
        """The suffixes in words."""
        return " or ".join(self.suffixes)


ONNX = Format(
    "onnx",
    (".onnx",),
    "featuretap.runtimes.foreign_files:write_onnx",
    "featuretap.runtimes.on_onnxruntime:opened",
    extra="onnxruntime",
    modules=("onnx", "onnxscript", "onnxruntime"),
)
SCRIPT = Format(
    "torchscript",
    (".torchscript", ".ts", ".torchscript.pt"),
    "featuretap.runtimes.torch_files:write_script",
    "featuretap.runtimes.torch_files:open_script",
)

# Where formats share a suffix, it means the first of them.
FORMATS = (
    ONNX,
    Format(
        "openvino",
        (".xml",),
        "featuretap.runtimes.foreign_files:write_openvino",
        "featuretap.runtimes.on_openvino:opened",
        extra="openvino",
        modules=("openvino",),
    ),
    Format(
        "torch-export",
        (".pt2",),
        "featuretap.runtimes.torch_files:write_program",
        "featuretap.runtimes.torch_files:open_program",
    ),
    Format("aot", (".pt2",), "featuretap.runtimes.on_aot:write_package", "featuretap.runtimes.on_aot:opened"),
    SCRIPT,
)

DETECTORS = (
    replace(
        ONNX,
        prepare="featuretap.runtimes.detectors_as_onnx:prepare",
        writer="featuretap.runtimes.detectors_as_onnx:write",
        verifier="featuretap.runtimes.detectors_as_onnx:verify",
    ),
    replace(
        SCRIPT,
        prepare="featuretap.runtimes.detectors_as_script:prepare",
        writer="featuretap.runtimes.detectors_as_script:write",
        reader="featuretap.runtimes.detectors_as_script:opened",
        verifier="featuretap.runtimes.detectors_as_script:verify",
    ),
)
"""How models that find objects are written; by the same names."""


def for_detectors(form: Format, head: str | None) -> Format:
    """Return how detectors are written in a format.

    Raises:
        HeadError: they are not.
    """
    found = {form.name: form for form in DETECTORS}.get(form.name)
    if found is None:
        raise HeadError(
            f"the head {head!r} finds as many objects as there are in an image, which {form.name} files cannot hold; "
            "export it as onnx, for one image of one size, or as torchscript"
        )
    return found


def format_of(path: Path, asked: str | None) -> Format:
    """Return the format of a file that is to be written.

    Args:
        path: the file, whose name's ending says the format where none is asked for.
        asked: name of the format.

    Raises:
        OptionError: there is no such format, the ending fits none, or another.
    """
    if asked is None:
        fitting = [form for form in FORMATS if path.name.endswith(form.suffixes)]
        if not fitting:
            endings = ", ".join(f"{form.endings} ({form.name})" for form in FORMATS)
            raise OptionError(f"{path.name!r} does not end as an exported file does; endings are {endings}")
        return fitting[0]
    form = {form.name: form for form in FORMATS}.get(asked)
    if form is None:
        names = [form.name for form in FORMATS]
        hint = did_you_mean(asked, names) or f"; formats are {', '.join(names)}"
        raise OptionError(f"no format named {asked!r}{hint}")
    if not path.name.endswith(form.suffixes):
        raise OptionError(f"a file of the format {asked!r} ends in {form.endings}, and {path.name!r} does not")
    return form


def check_installed(form: Format) -> None:
    """Say which packages for a format are missing.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    if form.modules:
        check_extra(f"exporting to {form.name}", form.extra, form.modules)
