"""The repository as a package: packaged files, documentation, and fast imports without PyTorch."""

import pkgutil

import pytest
from support import ROOT
from support.package import (
    FOLDERS,
    MODULES,
    OF_RUNTIMES,
    PROJECT,
    check_documented,
    heavy_modules_after,
)

import featuretap

LIGHT = (
    "import featuretap; featuretap.registry.list_backbones(); featuretap.registry.spec('mobilenet_v3_large').parameters"
)


@pytest.mark.parametrize(
    "code",
    [
        LIGHT,
        "from featuretap.registry import Registry",
        "from featuretap.registry.hookspecs import hookimpl",
        "import featuretap.registry.specs, featuretap.specs.variants",
        "import featuretap.plugins.builtin",
        "from featuretap import registry; registry.list_runtimes()",
        *(
            f"from featuretap.command_line import main\ntry: main({arguments})\nexcept SystemExit: pass"
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
    assert folders | {"featuretap"} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_root_holds_no_other_module() -> None:
    assert [path.name for path in ROOT.glob("*.py")] == ["__init__.py"]


def test_no_module_of_the_registry_hides_one_of_its_functions() -> None:
    public = set(featuretap.registry.__all__)
    assert not public & {module.name for module in pkgutil.iter_modules(featuretap.registry.__path__)}


QUICK = [name for name in MODULES if name not in OF_RUNTIMES]


@pytest.mark.parametrize("name", QUICK)
def test_everything_public_is_documented(name: str) -> None:
    check_documented(name)


def test_modules_tested_with_the_runtimes_exist() -> None:
    assert set(OF_RUNTIMES) < set(MODULES)
