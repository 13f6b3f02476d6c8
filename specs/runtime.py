"""A runtime as data: what it is called, what has to be installed for it, and which files it opens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from featuretap.specs.validation import IMPORT_STRING, NAMED_STRINGS, STRING, STRINGS, Check, check_fields, check_name
from featuretap.support.extras import check_modules

FIELDS: dict[str, Check] = {
    "factory": IMPORT_STRING,
    "session": IMPORT_STRING,
    "modules": STRINGS,
    "requires": STRING,
    "opens": NAMED_STRINGS,
    "description": STRING,
}


@dataclass(frozen=True)
class RuntimeSpec:
    """A runtime that models can be compiled for.

    Args:
        name: as `registry.compile` is asked for it.
        factory: import string of `factory(exportable, *, threads) -> run`, where `exportable` is a
            `featuretap.runtimes.exportable.Exportable`, `threads` a number or None for torch's, and `run` maps images
            (N, C, H, W) to a sequence of tensors in the order of `exportable.signature.outputs`.
        session: import string of `open_session(model, *, threads) -> Opened` (`featuretap.runtimes.sessions`), where
            `model` is an ONNX graph as bytes or the path of a file in `opens`, and `threads` a number; it imports no
            torch. Empty for a runtime that needs torch.
        modules: top-level modules that have to be installed.
        requires: what brings them, as pip spells it: "featuretap[openvino]".
        opens: ending of a file (".onnx") → import string of `open(path, *, threads) -> (metadata, run)`, where
            `metadata` are the strings that the file holds of its model.
        description: what it is, in a line.

    Raises:
        SpecError: the name is no name, or a field is of another kind.
    """

    name: str
    factory: str
    modules: tuple[str, ...] = ()
    requires: str = ""
    opens: Mapping[str, str] = field(default_factory=dict, hash=False)
    description: str = ""
    session: str = ""

    def __post_init__(self) -> None:
        check_name("runtime", self.name)
        check_fields(f"runtime {self.name!r}", self, FIELDS)

    def check_installed(self) -> None:
        """Check that the modules of the runtime are installed, without importing any.

        Raises:
            MissingExtraError: one of them is not.
        """
        check_modules(f"the runtime {self.name!r}", self.modules, self.requires)
