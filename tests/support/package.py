"""The files and modules of the package, their public names and their imports."""

import ast
import importlib
import inspect
import subprocess
import sys
import tomllib
from types import ModuleType

from support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = sorted({name.split(".")[1] for name in PROJECT["tool"]["setuptools"]["packages"] if "." in name})
MODULES = [
    ".".join(("featuretap", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for name in FOLDERS
    for path in sorted((ROOT / name).rglob("*.py"))
    if path.name != "__main__.py"
]

OF_RUNTIMES = [f"featuretap.runtimes.{name}" for name in ("onnx_runtime", "openvino_runtime")]
"""Modules that import ONNX, ONNX Runtime or OpenVINO, which `make test` does without."""

PROOF = "import sys; found = sorted({'torch', 'torchvision', 'timm', 'numpy', 'PIL'} & set(sys.modules)); print(found)"


def heavy_modules_after(code: str) -> list[str]:
    ran = subprocess.run([sys.executable, "-c", f"{code}\n{PROOF}"], capture_output=True, text=True, check=True)
    return list(ast.literal_eval(ran.stdout.splitlines()[-1]))


def public_things(module: ModuleType) -> list[tuple[str, object]]:
    names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    things = [(name, getattr(module, name)) for name in names]
    return [
        (n, t) for n, t in things if (inspect.isclass(t) or inspect.isfunction(t)) and t.__module__ == module.__name__
    ]


def check_documented(name: str) -> None:
    """Check that a module and its public members have docstrings."""
    module = importlib.import_module(name)
    assert module.__doc__
    for thing, value in public_things(module):
        assert inspect.getdoc(value), thing
        for member, function in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(function) and not member.startswith("_"):
                assert function.__doc__, f"{thing}.{member}"
