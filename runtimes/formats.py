"""Export formats and the functions that write and read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from featuretap.support.errors import HeadError, OptionError, did_you_mean
from featuretap.support.extras import check_extra


@dataclass(frozen=True)
class Format:
    """An export format. Functions are import strings "module:function" relative to `featuretap.runtimes`.

    Args:
        name: name of the format.
        suffixes: file name suffixes.
        writer: `writer(model, path, metadata)`, which writes an `Exportable`.
        reader: `reader(path, *, threads) -> (metadata, run)`.
        prepare: `prepare(model, size, batch)`, which returns the `Exportable`.
        verifier: `verifier(model, run)`, which compares the file with the model.
        for_detectors: fields that differ for detectors; empty if the format does not support detectors.
        extra: the featuretap extra that installs the required packages.
        modules: top-level modules of these packages.
        session: import string of the runtime's `open_session` if the format is an ONNX graph.
        graph_writer: `graph_writer(graph, path, metadata)`, which writes an ONNX graph without PyTorch.
    """

    name: str
    suffixes: tuple[str, ...]
    writer: str
    reader: str
    prepare: str = "exportable:prepare_model"
    verifier: str = "verification:verify_outputs"
    for_detectors: Mapping[str, Any] = field(default_factory=dict)
    extra: str = ""
    modules: tuple[str, ...] = ()
    session: str = ""
    graph_writer: str = ""

    @property
    def endings(self) -> str:
        """The suffixes as text."""
        return " or ".join(self.suffixes)

    def check_installed(self) -> None:
        """Check that the packages for the format are installed.

        Raises:
            MissingExtraError: a package is missing.
        """
        check_extra(f"exporting to {self.name}", self.extra, self.modules)

    def of_detectors(self, head: str | None) -> Self:
        """Return the variant of the format for detectors.

        Args:
            head: name of the head, for the message.

        Returns:
            The format.

        Raises:
            HeadError: the format does not support detectors.
        """
        if not self.for_detectors:
            raise HeadError(
                f"{self.name} files do not support the detector {head!r}; export it as onnx for one image of a fixed "
                "size, or as torchscript"
            )
        return replace(self, **self.for_detectors)


ONNX = Format(
    "onnx",
    (".onnx",),
    "torch_sessions:write_onnx",
    "torch_sessions:open_onnx",
    for_detectors={
        "prepare": "detectors:prepare_detector",
        "writer": "detectors:write_detector",
        "verifier": "detectors:verify_detector",
    },
    extra="onnxruntime",
    modules=("onnx", "onnxruntime"),
    session="featuretap.runtimes.onnx_runtime:open_session",
    graph_writer="graphs:write_onnx",
)

# If formats share a suffix, the first one is the default.
FORMATS = (
    ONNX,
    Format(
        "openvino",
        (".xml",),
        "torch_sessions:write_openvino",
        "torch_sessions:open_openvino",
        extra="openvino",
        modules=("onnx", "openvino"),
        session="featuretap.runtimes.openvino_runtime:open_session",
        graph_writer="openvino_runtime:write_file",
    ),
    Format("torch-export", (".pt2",), "torch_runtimes:write_program", "torch_runtimes:open_program"),
    Format("aot", (".pt2",), "torch_runtimes:write_aot", "torch_runtimes:open_aot"),
    Format(
        "torchscript",
        (".torchscript", ".ts", ".torchscript.pt"),
        "torch_runtimes:write_script",
        "torch_runtimes:open_script",
        for_detectors={
            "prepare": "detectors:prepare_detector_script",
            "reader": "detectors:open_detector_script",
            "verifier": "detectors:verify_detector_script",
        },
    ),
)


def resolve_format(path: Path, name: str | None) -> Format:
    """Return the format of a file to write.

    Args:
        path: path of the file.
        name: name of the format; None selects it by the suffix.

    Returns:
        The format.

    Raises:
        OptionError: the name or the suffix is unknown, or the two do not match.
    """
    if name is None:
        matching = [form for form in FORMATS if path.name.endswith(form.suffixes)]
        if not matching:
            endings = ", ".join(f"{form.endings} ({form.name})" for form in FORMATS)
            raise OptionError(f"{path.name!r} has no suffix of an export format; use one of {endings}")
        return matching[0]
    by_name = {form.name: form for form in FORMATS}
    if name not in by_name:
        hint = did_you_mean(name, by_name) or f"; available formats: {', '.join(by_name)}"
        raise OptionError(f"no format named {name!r}{hint}")
    form = by_name[name]
    if not path.name.endswith(form.suffixes):
        raise OptionError(f"{path.name!r} does not match the format {name!r}; use a name that ends in {form.endings}")
    return form
