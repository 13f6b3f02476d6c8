"""Plugins of installed distributions: which are discovered, their order and version, and which may load."""

import importlib.metadata
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Completed
from support.distributions import GOOD, IMPORTS, Distribution, installed_here, table, write_installed, write_metadata

import featuretap
from featuretap.registry import Registry
from featuretap.registry.errors import UnknownBackboneError

Run = Callable[..., Completed]


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Path]:
    """A folder of installed distributions: two with working plugins."""
    with installed_here(write_installed(tmp_path / "installed", GOOD)):
        yield tmp_path / "installed"


def test_a_head_that_two_distributions_have_is_listed_without_a_description(run: Run, tmp_path: Path) -> None:
    head = "@hookimpl\ndef featuretap_heads():\n    return [HeadSpec('twinhead', reads=('C5',), factory='a:b')]\n"
    twins = {name: Distribution(IMPORTS + head) for name in ("one", "two")}
    with installed_here(write_installed(tmp_path / "twins", twins)):
        listed = run("list", "--heads", "twin*")
    assert listed.status == 0
    assert ["twinhead", "–", "–"] in [line.split() for line in listed.out.splitlines()]
    message = (
        "2 plugins provide a head named 'twinhead'; choose one: 'featuretap-one:twinhead' or 'featuretap-two:twinhead'"
    )
    assert message in listed.err


def statuses(run: Run) -> dict[str, str]:
    """Return plugin → status, from the JSON output of `featuretap plugins`."""
    ran = run("plugins", "--json")
    assert (ran.status, ran.err) == (0, "")
    return {plugin["plugin"]: plugin["status"] for plugin in json.loads(ran.out)["plugins"]}


def test_built_in_plugins_come_through_the_same_entry_points() -> None:
    points = importlib.metadata.entry_points(group="featuretap")
    assert {p.name: p.value for p in points if p.dist and p.dist.name == "featuretap"} == {
        "featuretap": "featuretap.plugins.builtin",
        "timm": "featuretap.plugins.timm",
        "torchvision": "featuretap.plugins.torchvision",
    }


@pytest.mark.usefixtures("installed")
def test_plugins_are_found_without_an_import_and_built_in_ones_come_first() -> None:
    registry = Registry()
    assert registry.list_plugins() == ["featuretap", "featuretap-marker", "featuretap-tiny"]
    assert [plugin.name for plugin in registry.plugins] == ["featuretap", "timm", "torchvision", "marker", "tiny"]
    tiny = registry.plugins[-1]
    assert (tiny.version, tiny.value, tiny.built_in, tiny.status) == ("1.2", "plugin_tiny", False, "loaded")
    assert {name: tap.channels for name, tap in registry.spec("tinynet", features_only=True).taps.items()} == {
        "C1": 8,
        "C2": 16,
    }


@pytest.mark.usefixtures("installed")
def test_with_discovery_off_only_built_in_plugins_load() -> None:
    assert Registry(discover=False).list_plugins() == ["featuretap"]


@pytest.mark.parametrize(
    ("variables", "policy", "imported"),
    [
        ({}, "", True),
        ({"FEATURETAP_PLUGINS": ""}, "", False),
        ({"FEATURETAP_PLUGINS": "featuretap-tiny"}, "", False),
        ({"FEATURETAP_PLUGINS": "featuretap-tiny, Featuretap.Marker"}, "", True),
        ({}, 'disable = ["Featuretap_Marker"]', False),
        ({}, 'only = ["featuretap-tiny"]', False),
        ({}, 'only = ["featuretap-marker"]', True),
        ({"FEATURETAP_PLUGINS": "featuretap-marker"}, 'disable = ["featuretap-marker"]', False),
    ],
)
@pytest.mark.usefixtures("installed")
def test_policy_decides_before_any_code_is_imported(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    policy: str,
    imported: bool,
) -> None:
    config, marker = tmp_path / "featuretap.toml", tmp_path / "marker"
    config.write_text(f"schema = 1\n[plugins]\n{policy}\n")
    for name, value in {"MARKER": str(marker), "FEATURETAP_CONFIG": str(config), **variables}.items():
        monkeypatch.setenv(name, value)
    listed = run("list")
    assert listed.status == 0
    assert marker.exists() == imported
    assert ("markernet" in listed.out) == imported
    status = statuses(run)
    assert status["marker"] == ("loaded" if imported else "disabled")
    assert status["featuretap"] == "loaded"


@pytest.mark.usefixtures("installed")
def test_a_name_of_a_disabled_plugin_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURETAP_PLUGINS", "")
    with pytest.raises(UnknownBackboneError) as error:
        Registry().spec("featuretap-tiny:tinynet")
    assert str(error.value) == (
        "'featuretap-tiny:tinynet' is not available because plugin 'tiny' of distribution 'featuretap-tiny' is "
        "disabled; enable it in FEATURETAP_PLUGINS or under [plugins] in featuretap.toml"
    )


@pytest.mark.parametrize("key", ["disable", "only"])
@pytest.mark.usefixtures("installed")
def test_a_policy_for_a_distribution_without_plugins_is_reported(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    config = tmp_path / "featuretap.toml"
    config.write_text(f'schema = 1\n[plugins]\n{key} = ["featuretap-tinny"]\n')
    monkeypatch.setenv("FEATURETAP_CONFIG", str(config))
    assert f"{config}: plugins.{key} names 'featuretap-tinny', which provides no installed plugin" in run("list").err


# --- Unusual metadata ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("installed")
def test_a_distribution_that_is_on_the_path_twice_is_counted_once(tmp_path: Path) -> None:
    with installed_here(write_installed(tmp_path / "again", {"tiny": GOOD["tiny"]})):
        assert len(list(importlib.metadata.distributions(name="featuretap-tiny"))) == 2
        names = [plugin.name for plugin in Registry().plugins]
    assert names.count("tiny") == 1


@pytest.mark.parametrize(
    ("entry_points", "status"),
    [
        ("[featuretap]\nnonsense\n", "failed"),
        ("[console_scripts]\nnonsense\n[featuretap]\nodd = plugin_tiny\n", "loaded"),
        ("[featuretap]\n# a comment\n; and another\n\nodd = plugin_tiny\n", "loaded"),
        ("[console_scripts]\nnonsense\n[other]\n", None),
        ("\udcff[featuretap]\n", None),
    ],
)
def test_malformed_entry_points_hide_no_other_distribution(
    installed: Path, entry_points: str, status: str | None
) -> None:
    write_metadata(installed, "odd", entry_points)
    found = {plugin.distribution: plugin for plugin in Registry().plugins}
    assert found["featuretap-tiny"].status == "loaded"
    assert (found["odd"].status if "odd" in found else None) == status
    if status == "failed":
        assert found["odd"].failure == (
            "plugin 'nonsense' of distribution 'odd' failed: its entry point 'nonsense' has the invalid value ''; "
            "write "
            "'nonsense = \"package.module\"' under [project.entry-points.featuretap]"
        )


@pytest.mark.parametrize(
    ("requires", "wanted"),
    [
        ("featuretap>=0.0.1", ""),
        ("Featuretap >= 0.0.1, < 99", ""),
        ("featuretap>=0.0.1,<0.0.2", "featuretap<0.0.2,>=0.0.1"),
        (f"featuretap>={featuretap.__version__}", ""),
        ("featuretap>=99; extra == 'all'", ""),
        ("featuretap is needed", ""),
        ("featuretap-other>=99", ""),
        ("Featuretap>=99", "featuretap>=99"),
    ],
)
def test_a_plugin_for_another_version_of_featuretap_is_not_imported(
    installed: Path, requires: str, wanted: str
) -> None:
    write_metadata(installed, "pinned", "[featuretap]\npinned = plugin_tiny\n", requires=["numpy>=99", requires])
    (plugin,) = (plugin for plugin in Registry().plugins if plugin.name == "pinned")
    reason = f"it requires {wanted}, but featuretap {featuretap.__version__} is installed; install compatible versions"
    assert str(plugin.error) == (reason if wanted else "None")


@pytest.mark.parametrize("allowed", [True, False])
def test_metadata_with_our_name_neither_hide_built_in_plugins_nor_escape_policy(
    run: Run, installed: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    write_metadata(installed, "featuretap", "[featuretap]\nimpostor = impostor\n", version="9.9")
    (installed / "impostor.py").write_text(table("impostornet"))
    if not allowed:
        monkeypatch.setenv("FEATURETAP_PLUGINS", "")
    found = statuses(run)
    assert {found[name] for name in ("featuretap", "timm", "torchvision")} == {"loaded"}
    assert found["impostor"] == ("loaded" if allowed else "disabled")


def test_what_a_plugin_prints_goes_to_standard_error(run: Run, installed: Path) -> None:
    # Two entry points for one module are one plugin.
    write_metadata(installed, "loud", "[featuretap]\nloud = loud\nlouder = loud\n")
    (installed / "loud.py").write_text("print('HELLO')\n" + table("loudnet"))
    listed = run("plugins", "--json")
    loud = [plugin for plugin in json.loads(listed.out)["plugins"] if plugin["distribution"] == "loud"]
    assert [plugin["plugin"] for plugin in loud] == ["loud"]
    assert listed.err == "HELLO\n"
