"""Each failure of a plugin is recorded with its reason, and does not affect anything else."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import Completed
from support.distributions import (
    CONFLICTS,
    CULPRITS,
    FAILURES,
    GOOD,
    Distribution,
    installed_here,
    plugin_of,
    table,
    write_installed,
)

from featuretap.registry import Registry
from featuretap.registry.errors import CatalogueError, PluginError, UnknownBackboneError
from featuretap.registry.hookspecs import hookimpl

Configured = Callable[[str], Registry]


@pytest.fixture(scope="module")
def culprits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every broken plugin as an installed distribution, and one that works."""
    return write_installed(tmp_path_factory.mktemp("culprits"), {"tiny": GOOD["tiny"], **CULPRITS})


@pytest.fixture
def crowded(culprits: Path) -> Iterator[None]:
    with installed_here(culprits):
        yield


@pytest.mark.usefixtures("crowded")
def test_every_broken_plugin_is_reported_and_the_others_load(run: Callable[..., Completed]) -> None:
    registry = Registry()
    assert sorted(registry.problems) == sorted([*FAILURES.values(), *CONFLICTS])
    assert {"mobilenet_v3_large", "tinynet"} <= set(registry.list_backbones())
    assert set(registry.list_plugins("featuretap-*")) == {
        "featuretap-tiny",
        *(f"featuretap-{name}" for name in CULPRITS),
    }
    printed = run("plugins")
    assert (printed.status, printed.err) == (0, "")
    assert {*FAILURES.values(), *CONFLICTS} <= set(printed.out.splitlines())
    assert printed.out.splitlines()[-1] == "See where it failed: featuretap plugins doctor featuretap-badaliases"


@pytest.mark.usefixtures("crowded")
def test_a_name_of_a_failed_plugin_is_an_error_with_its_reason() -> None:
    with pytest.raises(PluginError) as error:
        Registry().spec("featuretap-raises:anything")
    assert str(error.value) == f"'featuretap-raises:anything' is not available because {FAILURES['featuretap-raises']}"
    assert isinstance(error.value.__cause__, ImportError)


@pytest.mark.usefixtures("crowded")
def test_a_users_variant_of_a_missing_backbone_hides_nothing_else(configured: Configured, tmp_path: Path) -> None:
    registry = configured('[backbones.mine]\nbase = "featuretap-raises:net"\n')
    message = (
        f"{tmp_path / 'featuretap.toml'}: backbones.mine cannot be used: 'featuretap-raises:net' is not available "
        f"because {FAILURES['featuretap-raises']}"
    )
    assert message in registry.problems
    assert "tinynet" in registry.list_backbones()
    with pytest.raises(CatalogueError) as error:
        registry.spec("mine")
    assert str(error.value) == message


@pytest.mark.usefixtures("crowded")
def test_strict_mode_raises_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURETAP_STRICT", "1")
    with pytest.raises(PluginError) as error:
        Registry().list_backbones()
    assert str(error.value) == FAILURES["featuretap-badaliases"]


def test_strict_mode_applies_to_modules_at_hand_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURETAP_STRICT", "1")
    with pytest.raises(PluginError, match="plugin 'bad' of distribution 'bad' failed"):
        Registry([plugin_of("bad", backbones=[1])], discover=False).list_backbones()


def test_hooks_of_a_plugin_that_failed_half_way_are_not_called_for_the_next(tmp_path: Path) -> None:
    wrong = table("halfnet") + "\n@hookimpl\ndef featuretap_heads(nonsense):\n    return []\n"
    with installed_here(write_installed(tmp_path, {"half": Distribution(wrong), "tiny": GOOD["tiny"]})):
        half, tiny = (plugin for plugin in Registry().plugins if not plugin.built_in)
    assert (half.status, type(half.error).__name__) == ("failed", "PluginValidationError")
    assert [spec.name for spec in tiny.backbones] == ["tinynet"]


def raising(error: BaseException) -> Callable[[], Any]:
    def featuretap_backbones() -> Any:
        raise error

    return hookimpl(featuretap_backbones)


@pytest.mark.parametrize("error", [KeyError("deep inside"), SystemExit(1), GeneratorExit(), KeyboardInterrupt()])
def test_a_failure_keeps_its_traceback(error: BaseException) -> None:
    module = SimpleNamespace(__name__="deep", featuretap_backbones=raising(error))
    failed = next(p for p in Registry([module], discover=False).plugins if p.name == "deep")
    assert failed.error is error
    assert failed.error.__traceback__ is not None


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise ValueError


def test_a_failure_that_cannot_be_printed_hides_nothing() -> None:
    module = SimpleNamespace(__name__="deep", featuretap_backbones=raising(SpeechlessError()))
    assert Registry([module], discover=False).problems == (
        "plugin 'deep' of distribution 'deep' failed: SpeechlessError: message unavailable (ValueError)",
    )


def test_a_missing_name_is_raised_from_the_failure_that_may_be_why() -> None:
    error = ValueError("broken")
    module = SimpleNamespace(__name__="deep", featuretap_backbones=raising(error))
    with pytest.raises(UnknownBackboneError) as unknown:
        Registry([module], discover=False).spec("tinynet")
    assert str(unknown.value) == (
        "no backbone named 'tinynet' (plugin 'deep' of distribution 'deep' failed: ValueError: broken); see "
        "registry.list_backbones()"
    )
    assert unknown.value.__cause__ is error
