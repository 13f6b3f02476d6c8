"""The repository as a package: what is packed, what is documented, and that light code stays light."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
import tomllib
from types import ModuleType

import pytest
from conftest import ROOT

import featuretap

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
PACKED = set(PROJECT["tool"]["setuptools"]["packages"])
MODULES = [
    ".".join(("featuretap", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for name in FOLDERS
    for path in sorted((ROOT / name).rglob("*.py"))
    if path.name != "__main__.py"
]

LIGHT = (
    "import featuretap; featuretap.registry.list_backbones(); featuretap.registry.spec('mobilenet_v3_large').parameters"
)
PROOF = "import sys; found = sorted({'torch', 'torchvision', 'timm', 'numpy', 'PIL'} & set(sys.modules)); print(found)"


def heavy_modules_after(code: str) -> list[str]:
    ran = subprocess.run([sys.executable, "-c", f"{code}\n{PROOF}"], capture_output=True, text=True, check=True)
    return list(ast.literal_eval(ran.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        LIGHT,
        "from featuretap.registry import Registry",
        "from featuretap.registry.hookspecs import hookimpl",
        "import featuretap.registry.specs, featuretap.registry.variants",
        "import featuretap.plugins.builtin",
        "from featuretap import registry; registry.list_runtimes()",
        *(
            f"from featuretap.registry.command_line import main\ntry: main({arguments})\nexcept SystemExit: pass"
            for arguments in (["list"], ["show", "mobilenet_v3_large"], ["show", "mobilenet_v2", "--json"], ["--help"])
        ),
    ],
)
def test_light_code_imports_nothing_heavy(code: str) -> None:
    assert heavy_modules_after(code) == []


def test_the_proof_of_lightness_can_fail() -> None:
    assert "torch" in heavy_modules_after("from featuretap import registry; registry.build('mobilenet_v3_small')")


def test_every_folder_of_code_is_packed() -> None:
    folders = {
        ".".join(("featuretap", *path.parent.relative_to(ROOT).parts))
        for name in FOLDERS
        for path in (ROOT / name).rglob("__init__.py")
    }
    assert folders | {"featuretap"} == PACKED


def test_the_root_holds_no_other_module() -> None:
    assert [path.name for path in ROOT.glob("*.py")] == ["__init__.py"]


def test_no_module_of_the_registry_hides_one_of_its_functions() -> None:
    public = set(featuretap.registry.__all__)
    assert not public & {module.name for module in pkgutil.iter_modules(featuretap.registry.__path__)}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_print_what_they_say(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_some_docstrings_have_examples() -> None:
    assert doctest.testmod(featuretap).attempted >= 2


def public_things(module: ModuleType) -> list[tuple[str, object]]:
    names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    things = [(name, getattr(module, name)) for name in names]
    return [
        (n, t) for n, t in things if (inspect.isclass(t) or inspect.isfunction(t)) and t.__module__ == module.__name__
    ]


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for thing, value in public_things(module):
        assert inspect.getdoc(value), thing
        for member, function in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(function) and not member.startswith("_"):
                assert function.__doc__, f"{thing}.{member}"
