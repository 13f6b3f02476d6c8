"""Plugins are installed distributions with an entry point; these lie on sys.path with real metadata of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from featuretap.registry import Registry
from featuretap.registry.errors import PluginError, UnknownBackboneError
from featuretap.registry.hookspecs import hookimpl

GOOD = """
from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.specs import RE, BackboneSpec, Conv

@hookimpl
def featuretap_backbones():
    return [BackboneSpec("{name}", stages=((Conv(3, 8, RE),),))]
"""
BROKEN = {
    "raises": "raise ImportError('no module named left_pad')",
    "exits": "import sys; sys.exit(3)",
    "hook_raises": """
from featuretap.registry.hookspecs import hookimpl
@hookimpl
def featuretap_backbones():
    raise ValueError("the hook is broken")
""",
    "misspelled": """
from featuretap.registry.hookspecs import hookimpl
@hookimpl
def featuretap_backbone():
    return []
""",
    "rubbish": """
from featuretap.registry.hookspecs import hookimpl
@hookimpl
def featuretap_backbones():
    return ["resnet18"]
""",
}
QUESTION = """
import json, sys
from featuretap import registry
answer = {
    "backbones": registry.list_backbones(),
    "plugins": {p.distribution: [p.status, p.failure if p.error else ""] for p in registry.default.plugins},
    "imported": sorted(name for name in sys.modules if name.startswith("plugin_")),
    "torch": "torch" in sys.modules,
}
print(json.dumps(answer))
"""


@pytest.fixture
def install(tmp_path: Path) -> Callable[[str, str], None]:
    """Lay a distribution with an entry point where Python finds it."""

    def install(name: str, code: str) -> None:
        module = f"plugin_{name}"
        (tmp_path / f"{module}.py").write_text(code)
        metadata = tmp_path / f"featuretap_{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: featuretap-{name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[featuretap]\n{name} = {module}\n")

    return install


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Ask a fresh Python process that has the installed plugins on its path."""

    def ask(code: str = QUESTION, **environment: str) -> dict[str, Any]:
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(ran.stdout)  # type: ignore[no-any-return]

    return ask


def test_an_installed_plugin_needs_no_import(install: Any, ask: Any) -> None:
    install("tiny", GOOD.format(name="tinynet"))
    answer = ask()
    assert "tinynet" in answer["backbones"]
    assert answer["plugins"] == {"featuretap": ["loaded", ""], "featuretap-tiny": ["loaded", ""]}
    assert not answer["torch"]


def test_broken_plugins_take_nothing_down_and_are_named_with_their_reason(install: Any, ask: Any) -> None:
    install("tiny", GOOD.format(name="tinynet"))
    for name, code in BROKEN.items():
        install(name, code)
    answer = ask()
    assert {"tinynet", "mobilenet_v3_large"} <= set(answer["backbones"])
    said = {name: why for name, (status, why) in answer["plugins"].items() if status == "failed"}
    begin = "plugin {0!r} of distribution 'featuretap-{1}' failed: "
    expected = {
        "raises": "ImportError: no module named left_pad",
        "exits": "SystemExit: 3",
        "hook_raises": "ValueError: the hook is broken",
        "misspelled": "PluginValidationError: unknown hook 'featuretap_backbone' in plugin ",
        "rubbish": "PluginError: its hook featuretap_backbones should return BackboneSpec objects, got 'resnet18'",
    }
    assert set(said) == {f"featuretap-{name.replace('_', '-')}" for name in expected}
    for name, reason in expected.items():
        dashed = name.replace("_", "-")
        assert said[f"featuretap-{dashed}"].startswith(begin.format(name, dashed) + reason)


def test_a_name_that_is_missing_may_be_a_failed_plugins(install: Any, ask: Any) -> None:
    install("raises", BROKEN["raises"])
    code = """
import json
from featuretap import registry
try:
    registry.build("tinynet")
except LookupError as error:
    print(json.dumps({"said": str(error)}))
"""
    assert ask(code)["said"] == (
        "no backbone named 'tinynet'; registry.list_backbones() names them (plugin 'raises' of distribution "
        "'featuretap-raises' failed: ImportError: no module named left_pad)"
    )


def test_strict_mode_raises_the_first_failure(install: Any, ask: Any) -> None:
    install("raises", BROKEN["raises"])
    with pytest.raises(subprocess.CalledProcessError) as error:
        ask(FEATURETAP_STRICT="1")
    assert "PluginError: plugin 'raises' of distribution 'featuretap-raises' failed" in error.value.stderr


@pytest.mark.parametrize(
    ("environment", "imported"),
    [
        ({}, ["plugin_one", "plugin_two"]),
        ({"FEATURETAP_PLUGINS": ""}, []),
        ({"FEATURETAP_PLUGINS": "Featuretap.Two"}, ["plugin_two"]),
        ({"FEATURETAP_PLUGINS": "featuretap-one, featuretap_two"}, ["plugin_one", "plugin_two"]),
    ],
)
def test_the_environment_decides_before_anything_is_imported(
    install: Any, ask: Any, environment: dict[str, str], imported: list[str]
) -> None:
    install("one", GOOD.format(name="one"))
    install("two", GOOD.format(name="two"))
    answer = ask(**environment)
    assert answer["imported"] == imported
    assert "mobilenet_v2" in answer["backbones"]
    switched_off = {name for name, (status, _) in answer["plugins"].items() if status == "disabled"}
    assert len(switched_off) == 2 - len(imported)


@pytest.mark.parametrize(
    ("policy", "imported"),
    [('disable = ["featuretap-one"]', ["plugin_two"]), ('only = ["featuretap-one"]', ["plugin_one"])],
)
def test_the_users_catalogue_decides_before_anything_is_imported(
    install: Any, ask: Any, tmp_path: Path, policy: str, imported: list[str]
) -> None:
    install("one", GOOD.format(name="one"))
    install("two", GOOD.format(name="two"))
    config = tmp_path / "featuretap.toml"
    config.write_text(f"schema = 1\n[plugins]\n{policy}\n")
    assert ask(FEATURETAP_CONFIG=str(config))["imported"] == imported


def test_ours_comes_through_the_same_entry_point() -> None:
    from importlib.metadata import entry_points

    (point,) = [p for p in entry_points(group="featuretap") if p.dist and p.dist.name == "featuretap"]
    assert point.value == "featuretap.plugins.builtin"


def test_a_failure_keeps_its_traceback() -> None:
    def featuretap_backbones() -> Any:
        raise KeyError("deep inside")

    module = SimpleNamespace(__name__="deep", featuretap_backbones=hookimpl(featuretap_backbones))
    failed = next(p for p in Registry([module], discover=False).plugins if p.name == "deep")
    assert isinstance(failed.error, KeyError)
    assert failed.error.__traceback__ is not None


def test_strictness_applies_to_modules_at_hand_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURETAP_STRICT", "1")
    module = SimpleNamespace(__name__="bad", featuretap_backbones=hookimpl(lambda: [1]))
    with pytest.raises(PluginError, match="plugin 'bad' of distribution 'bad' failed"):
        Registry([module], discover=False).list_backbones()


def test_what_is_not_ours_is_not_discovered_unless_asked(install: Any, ask: Any) -> None:
    install("tiny", GOOD.format(name="tinynet"))
    code = """
import json
from featuretap.registry import Registry
print(json.dumps({"names": Registry(discover=False).list_backbones("tiny*")}))
"""
    assert ask(code)["names"] == []


def test_unknown_names_are_lookup_errors() -> None:
    with pytest.raises(LookupError):
        Registry(discover=False).spec("nothing")
    assert issubclass(UnknownBackboneError, LookupError)


def test_a_backbone_that_ends_early_is_listed_and_shown(install: Any, tmp_path: Path) -> None:
    install("tiny", GOOD.format(name="tinynet"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    for arguments in (["list"], ["show", "tinynet"]):
        command = [sys.executable, "-m", "featuretap.registry.command_line", *arguments]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert "tinynet" in ran.stdout


def test_a_name_that_two_plugins_claim_does_not_hide_the_list(install: Any, tmp_path: Path) -> None:
    install("one", GOOD.format(name="tinynet"))
    install("two", GOOD.format(name="tinynet"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "featuretap.registry.command_line", "list"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0
    assert "mobilenet_v3_large" in ran.stdout
    assert "say which: 'featuretap-one:tinynet' or 'featuretap-two:tinynet'" in ran.stderr
