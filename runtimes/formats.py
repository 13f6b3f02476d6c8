"""Export formats as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from featuretap.support.errors import HeadError, OptionError, did_you_mean
from featuretap.support.extras import check_extra


@dataclass(frozen=True)
class Format:
    """A kind of file, and the functions that write and read it, as "module:function" of `featuretap.runtimes`.

    Args:
        name: of the format.
        suffixes: endings of its files.
        writer: `writer(model, path, metadata)`, which writes an `Exportable`.
        reader: `reader(path, *, threads) -> (metadata, run)`.
        prepare: `prepare(model, size, batch)`, which returns the `Exportable`.
        verifier: `verifier(model, run)`, which compares the two.
        for_detectors: fields that differ for models that find objects; empty where the format cannot hold them.
        extra: of our distribution, with the packages that it needs.
        modules: the top-level modules of these.
        session: import string of `open_session` of the runtime that reads it, where it is an ONNX graph.
        graph_writer: `graph_writer(graph, path, metadata)`, which writes such a graph without PyTorch.
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
        """Check that the packages of the format are installed.

        Raises:
            MissingExtraError: one of them is not.
        """
        check_extra(f"exporting to {self.name}", self.extra, self.modules)

    def of_detectors(self, head: str | None) -> Self:
        """Return the format as it holds a detector.

        Raises:
            HeadError: it cannot.
        """
        if not self.for_detectors:
            raise HeadError(
                f"the head {head!r} finds as many objects as there are in an image, which {self.name} files cannot "
                "hold; export it as onnx, for one image of one size, or as torchscript"
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

# Where formats share a suffix, it means the first of them.
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
    """Return the format of a file to be written, by its name or, where that is None, by the ending of the file.

    Raises:
        OptionError: there is no such format, or the ending is of no format or of another.
    """
    if name is None:
        matching = [form for form in FORMATS if path.name.endswith(form.suffixes)]
        if not matching:
            endings = ", ".join(f"{form.endings} ({form.name})" for form in FORMATS)
            raise OptionError(f"{path.name!r} does not end as an exported file does; endings are {endings}")
        return matching[0]
    by_name = {form.name: form for form in FORMATS}
    if name not in by_name:
        hint = did_you_mean(name, by_name) or f"; formats are {', '.join(by_name)}"
        raise OptionError(f"no format named {name!r}{hint}")
    form = by_name[name]
    if not path.name.endswith(form.suffixes):
        raise OptionError(f"a file of the format {name!r} ends in {form.endings}, and {path.name!r} does not")
    return form
