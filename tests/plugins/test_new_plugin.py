"""`featuretap new-plugin` writes a working plugin, or reports why it cannot."""

import importlib.metadata
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from support import Completed

import featuretap
from featuretap.command_line.plugin_commands import render_template
from featuretap.registry import Registry


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["featuretap-my-net", "my_net", "my-net"])
@pytest.mark.parametrize("flags", [(), ("--factory",)], ids=["table", "factory"])
def test_the_written_distribution_is_a_plugin(
    name: str, flags: tuple[str, ...], run: Callable[..., Completed], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run("new-plugin", name, *flags)
    assert ran.status == 0
    written = render_template(name, factory=bool(flags))
    assert [f"wrote: {name}/{path}" for path in written] == ran.out.splitlines()[:-1]
    assert ran.out.splitlines()[-1] == (
        f"next: pip install -e './{name}[test]' && featuretap show my_net && pytest {name}"
    )
    project = tomllib.loads((Path(name) / "pyproject.toml").read_text())["project"]
    (requirement,) = map(Requirement, project["dependencies"])
    assert featuretap.__version__ in requirement.specifier
    ((_, value),) = project["entry-points"]["featuretap"].items()
    monkeypatch.syspath_prepend(Path(name).resolve())
    module = importlib.metadata.EntryPoint("x", value, "featuretap").load()
    registry = Registry([module], discover=False)
    assert registry.list_backbones("my_net*") == (["my_net"] if flags else ["my_net", "my_net_050"])
    assert registry.problems == ()
    maps = registry.build("my_net", features_only=True, taps=("C3", "C1"))(torch.zeros(1, 3, 32, 48))
    assert {name: tuple(values.shape) for name, values in maps.items()} == {"C3": (1, 40, 4, 6), "C1": (1, 16, 16, 24)}
    for loaded in [loaded for loaded in sys.modules if loaded.startswith(value.partition(".")[0])]:
        del sys.modules[loaded]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MyNet", "'MyNet' is not a distribution name; use the form featuretap-tinynet"),
        ("../net", "'../net' is not a distribution name; use the form featuretap-tinynet"),
        ("net--x", "'net--x' is not a distribution name; use the form featuretap-tinynet"),
        ("featuretap-2net", "'featuretap-2net' is not a distribution name; use the form featuretap-tinynet"),
        ("", "'' is not a distribution name; use the form featuretap-tinynet"),
        ("json", "the name 'json' is reserved by Python or featuretap; choose another name"),
        ("class", "the name 'class' is reserved by Python or featuretap; choose another name"),
        ("featuretap", "the name 'featuretap' is reserved by Python or featuretap; choose another name"),
        ("torch", "a module named 'torch' is already installed; choose another name"),
        ("mobilenet-v2", "'featuretap' already provides a backbone 'mobilenet_v2'; choose another name"),
        ("featuretap-mobilenetv2", "'featuretap' already provides a backbone 'mobilenetv2'; choose another name"),
    ],
)
def test_invalid_and_taken_names_are_refused(
    name: str, message: str, run: Callable[..., Completed], tmp_path: Path
) -> None:
    ran = run("new-plugin", name)
    assert (ran.status, ran.out, ran.err) == (2, "", f"featuretap: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_as_it_is(run: Callable[..., Completed], tmp_path: Path) -> None:
    (tmp_path / "mynet").mkdir()
    (tmp_path / "mynet" / "precious").touch()
    ran = run("new-plugin", "mynet")
    assert (ran.status, ran.err) == (
        2,
        "featuretap: 'mynet' already exists; choose another name or folder\n",
    )
    assert [path.name for path in (tmp_path / "mynet").iterdir()] == ["precious"]


def test_a_folder_that_cannot_be_written_is_named(
    run: Callable[..., Completed], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    ran = run("new-plugin", "mynet")
    assert (ran.status, ran.err) == (2, "featuretap: cannot write into 'mynet': No space left on device\n")
