"""The package as files and modules: which there are, what of them is public, and what they import."""

import ast
import inspect
import subprocess
import sys
import tomllib
from types import ModuleType

from support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = [
    "backbones",
    "datasets",
    "extraction",
    "heads",
    "inference",
    "measuring",
    "plugins",
    "registry",
    "runtimes",
    "training",
]
MODULES = [
    ".".join(("featuretap", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for name in FOLDERS
    for path in sorted((ROOT / name).rglob("*.py"))
    if path.name != "__main__.py"
]

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
