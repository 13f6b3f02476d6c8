"""Plugins are installed distributions; these are built, and installed by pip into an environment of their own."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.distributions import CONFLICTS, CULPRITS, GOOD, WHY, Distribution, Environment, table, write

import featuretap
from featuretap.registry import Registry
from featuretap.registry.errors import PluginError, UnknownBackboneError, UnknownHeadError, UnknownWeightsError
from featuretap.registry.hookspecs import WeightsEntry, hookimpl
from featuretap.registry.specs import RE, BackboneSpec, Conv, HeadSpec

FAILURES = {
    f"featuretap-{name}": f"plugin {name!r} of distribution 'featuretap-{name}' failed: "
    + why.format(version=featuretap.__version__)
    for name, why in WHY.items()
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with two plugins that are well."""
    folder = tmp_path_factory.mktemp("good")
    environment = Environment(folder / "environment")
    environment.install([write(folder, name, distribution) for name, distribution in GOOD.items()])
    return environment


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with every plugin that can go wrong, and one that is well."""
    folder = tmp_path_factory.mktemp("crowded")
    environment = Environment(folder / "environment")
    distributions = {"tiny": GOOD["tiny"], **CULPRITS}
    environment.install([write(folder, name, distribution) for name, distribution in distributions.items()])
    return environment


def test_an_installed_plugin_needs_no_import(good: Environment) -> None:
    listed = good.featuretap("list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "tinynet" in listed.stdout
    assert good.evaluate("[registry.list_backbones('t*'), 'torch' in sys.modules]") == [["tinynet"], False]
    built = "{k: v.channels for k, v in registry.build('tinynet', features_only=True).taps.items()}"
    assert good.evaluate(built) == {"C1": 8, "C2": 16}


def test_culprits_take_nothing_down_and_each_is_named_with_its_reason(crowded: Environment) -> None:
    listed = crowded.featuretap("list")
    assert listed.returncode == 0
    assert {"mobilenet_v3_large", "tinynet"} <= set(listed.stdout.split())
    *said, last = listed.stderr.splitlines()
    assert sorted(said) == sorted([*FAILURES.values(), *CONFLICTS])
    assert last == "featuretap plugins says more."


def test_built_in_backbones_build_among_culprits(crowded: Environment) -> None:
    taps = "list(registry.build('mobilenet_v3_large', features_only=True).taps)"
    assert crowded.evaluate(taps) == ["C1", "C2", "C3", "C4", "C5"]
    assert crowded.evaluate("registry.default.provider('mobilenet_v2')") == "featuretap"


def test_the_table_of_plugins_says_who_is_what(crowded: Environment) -> None:
    table = crowded.featuretap("plugins")
    assert (table.returncode, table.stderr) == (0, "")
    words = [line.split() for line in table.stdout.splitlines() if line.startswith("featuretap-")]
    rows = {row[0]: row for row in words if row[1][0].isdigit()}
    assert rows["featuretap-tiny"][1:7] == ["1.2", "tiny", "loaded", "1", "backbone", rows["featuretap-tiny"][6]]
    assert rows["featuretap-raises"][1:5] == ["1.2", "raises", "failed", "–"]
    assert set(rows) == {"featuretap-tiny", *(f"featuretap-{name}" for name in CULPRITS)}
    assert {*FAILURES.values(), *CONFLICTS} <= set(table.stdout.splitlines())
    assert table.stdout.splitlines()[-1] == "featuretap plugins doctor featuretap-badaliases shows where it failed."


def test_the_table_of_plugins_can_be_read_by_programs(crowded: Environment) -> None:
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


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("twinnet", "UnknownBackboneError", CONFLICTS[1]),
        (
            "featuretap-raises:anything",
            "PluginError",
            f"'featuretap-raises:anything' is not there, since {FAILURES['featuretap-raises']}",
        ),
        (
            "factorynet",
            "PluginError",
            "backbone 'factorynet': 'plugin_factory:build' raised ZeroDivisionError: no network",
        ),
    ],
)
def test_asking_for_what_a_culprit_has_says_why_it_is_not_there(
    crowded: Environment, name: str, kind: str, message: str
) -> None:
    assert crowded.evaluate(f"registry.build({name!r}, features_only=True)") == [kind, message]


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("featuretap-twin-two:twinnet", [8, 16]),
        ("Featuretap_Twin.Two:twinnet", [8, 16]),
        ("featuretap-builtin:mobilenet_v2", [8, 16]),
        ("featuretap:mobilenet_v2", [16, 24, 32, 96, 1280]),
    ],
)
def test_a_distributions_name_always_says_whose_is_meant(crowded: Environment, name: str, channels: list[int]) -> None:
    built = f"[tap.channels for tap in registry.build({name!r}, features_only=True).taps.values()]"
    assert crowded.evaluate(built) == channels


def test_a_users_alias_settles_whose_is_meant(crowded: Environment, tmp_path: Path) -> None:
    config = tmp_path / "featuretap.toml"
    config.write_text('schema = 1\n[backbones.twinnet]\nbase = "featuretap-twin-two:twinnet"\n')
    variables = {"FEATURETAP_CONFIG": str(config)}
    assert crowded.evaluate("registry.spec('twinnet', features_only=True).name", **variables) == "twinnet"
    assert CONFLICTS[1] not in crowded.featuretap("list", **variables).stderr


def test_a_users_variant_of_what_is_missing_waits_for_it_and_says_so(crowded: Environment, tmp_path: Path) -> None:
    config = tmp_path / "featuretap.toml"
    config.write_text('schema = 1\n[backbones.mine]\nbase = "featuretap-raises:net"\n')
    variables = {"FEATURETAP_CONFIG": str(config)}
    listed = crowded.featuretap("list", **variables)
    message = (
        f"{config}: backbones.mine cannot be used: 'featuretap-raises:net' is not there, since "
        f"{FAILURES['featuretap-raises']}"
    )
    assert listed.returncode == 0
    assert message in listed.stderr.splitlines()
    assert crowded.evaluate("registry.spec('mine')", **variables) == ["CatalogueError", message]


def test_strict_mode_raises_the_first_failure(crowded: Environment) -> None:
    answer = crowded.evaluate("registry.list_backbones()", FEATURETAP_STRICT="1")
    assert answer == ["PluginError", FAILURES["featuretap-badaliases"]]


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
def test_policy_decides_before_any_code_is_imported(
    good: Environment, tmp_path: Path, variables: dict[str, str], policy: str, imported: bool
) -> None:
    config, marker = tmp_path / "featuretap.toml", tmp_path / "marker"
    config.write_text(f"schema = 1\n[plugins]\n{policy}\n")
    listed = good.featuretap("list", MARKER=str(marker), FEATURETAP_CONFIG=str(config), **variables)
    assert listed.returncode == 0
    assert marker.exists() == imported
    assert ("markernet" in listed.stdout) == imported
    facts = json.loads(
        good.featuretap("plugins", "--json", FEATURETAP_CONFIG=str(config), **variables).stdout,
    )["plugins"]
    status = {plugin["plugin"]: plugin["status"] for plugin in facts}
    assert status["marker"] == ("loaded" if imported else "disabled")
    assert status["featuretap"] == "loaded"


def test_what_is_switched_off_says_so_when_it_is_asked_for(good: Environment) -> None:
    kind, message = good.evaluate("registry.build('featuretap-tiny:tinynet')", FEATURETAP_PLUGINS="")
    assert kind == "UnknownBackboneError"
    assert message == (
        "'featuretap-tiny:tinynet' is not there, since plugin 'tiny' of distribution 'featuretap-tiny' is switched "
        "off; FEATURETAP_PLUGINS and [plugins] in featuretap.toml say which load"
    )
    doctor = good.featuretap("plugins", "doctor", "featuretap-tiny", FEATURETAP_PLUGINS="")
    assert doctor.returncode == 0
    assert "switched off by FEATURETAP_PLUGINS or by [plugins] in featuretap.toml" in doctor.stdout


def test_a_distribution_that_lies_on_the_path_twice_is_counted_once(good: Environment, tmp_path: Path) -> None:
    (metadata,) = good.site.glob("featuretap_tiny*.dist-info")
    (tmp_path / metadata.name).mkdir()
    for file in ("METADATA", "entry_points.txt"):
        (tmp_path / metadata.name / file).write_text((metadata / file).read_text())
    names = good.evaluate("[p.name for p in registry.default.plugins]", PYTHONPATH=str(tmp_path))
    assert names.count("tiny") == 1


@pytest.mark.parametrize(
    ("entry_points", "status"),
    [
        ("[featuretap]\nnonsense\n", "failed"),
        ("[console_scripts]\nnonsense\n[featuretap]\nodd = plugin_tiny\n", "loaded"),
        ("[console_scripts]\nnonsense\n[other]\n", None),
        ("\udcff[featuretap]\n", None),
    ],
)
def test_malformed_metadata_of_anybody_hide_nothing(
    good: Environment, tmp_path: Path, entry_points: str, status: str | None
) -> None:
    metadata = tmp_path / "odd-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_bytes(entry_points.encode("utf-8", "surrogateescape"))
    found = good.evaluate(
        "{p.distribution: [p.status, p.failure] for p in registry.default.plugins}", PYTHONPATH=str(tmp_path)
    )
    assert found["featuretap-tiny"][0] == "loaded"
    assert found.get("odd", [None])[0] == status
    if status == "failed":
        assert found["odd"][1] == (
            "plugin 'nonsense' of distribution 'odd' failed: its entry point 'nonsense' names no module, ''; write "
            "'nonsense = \"package.module\"' under [project.entry-points.featuretap]"
        )


@pytest.mark.parametrize("environment", [{}, {"FEATURETAP_PLUGINS": ""}])
def test_metadata_with_our_name_neither_hide_ours_nor_escape_policy(
    good: Environment, tmp_path: Path, environment: dict[str, str]
) -> None:
    metadata = tmp_path / "featuretap-9.9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: featuretap\nVersion: 9.9\n")
    (metadata / "entry_points.txt").write_text("[featuretap]\nimpostor = impostor\n")
    (tmp_path / "impostor.py").write_text(table("impostornet"))
    listed = good.featuretap("plugins", "--json", PYTHONPATH=str(tmp_path), **environment)
    found = {plugin["plugin"]: plugin["status"] for plugin in json.loads(listed.stdout)["plugins"]}
    assert {found[name] for name in ("featuretap", "timm", "torchvision")} == {"loaded"}
    assert found["impostor"] == ("disabled" if environment else "loaded")


def test_what_a_plugin_prints_is_kept_out_of_what_programs_read(tmp_path: Path, good: Environment) -> None:
    metadata = tmp_path / "loud-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1.0\n")
    # Two names of one module are one plugin.
    (metadata / "entry_points.txt").write_text("[featuretap]\nloud = loud\nlouder = loud\n")
    (tmp_path / "loud.py").write_text("print('HELLO')\n" + table("loudnet"))
    listed = good.featuretap("plugins", "--json", PYTHONPATH=str(tmp_path))
    loud = [plugin for plugin in json.loads(listed.stdout)["plugins"] if plugin["distribution"] == "loud"]
    assert [plugin["plugin"] for plugin in loud] == ["loud"]
    assert listed.stderr == "HELLO\n"


@pytest.mark.parametrize("key", ["disable", "only"])
def test_a_policy_about_nobody_is_said(good: Environment, tmp_path: Path, key: str) -> None:
    config = tmp_path / "featuretap.toml"
    config.write_text(f'schema = 1\n[plugins]\n{key} = ["featuretap-tinny"]\n')
    listed = good.featuretap("list", FEATURETAP_CONFIG=str(config))
    assert f"{config}: plugins.{key} names 'featuretap-tinny', which has no plugin that is installed" in listed.stderr


def test_ours_comes_through_the_same_entry_points() -> None:
    from importlib.metadata import entry_points

    ours = {p.name: p.value for p in entry_points(group="featuretap") if p.dist and p.dist.name == "featuretap"}
    assert ours == {
        "featuretap": "featuretap.plugins.builtin",
        "timm": "featuretap.plugins.timm",
        "torchvision": "featuretap.plugins.torchvision",
    }


def plugin_of(name: str, **answers: Any) -> SimpleNamespace:
    """A plugin that is no distribution: hooks → what they return."""
    hooks = {f"featuretap_{hook}": hookimpl(lambda answer=answer: answer) for hook, answer in answers.items()}
    return SimpleNamespace(__name__=name, **hooks)


def raising(error: BaseException) -> Callable[[], Any]:
    def featuretap_backbones() -> Any:
        raise error

    return hookimpl(featuretap_backbones)


@pytest.mark.parametrize("error", [KeyError("deep inside"), SystemExit(1), GeneratorExit()])
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
        "plugin 'deep' of distribution 'deep' failed: SpeechlessError: its text cannot be had (ValueError)",
    )


def test_an_interruption_is_no_failure_of_a_plugin() -> None:
    module = SimpleNamespace(__name__="deep", featuretap_backbones=raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        Registry([module], discover=False).list_backbones()


def test_a_missing_name_is_raised_from_the_failure_that_may_be_why() -> None:
    error = ValueError("broken")
    module = SimpleNamespace(__name__="deep", featuretap_backbones=raising(error))
    with pytest.raises(UnknownBackboneError) as unknown:
        Registry([module], discover=False).spec("tinynet")
    assert str(unknown.value) == (
        "no backbone named 'tinynet'; registry.list_backbones() names them (plugin 'deep' of distribution 'deep' "
        "failed: ValueError: broken)"
    )
    assert unknown.value.__cause__ is error


def test_strictness_applies_to_modules_at_hand_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURETAP_STRICT", "1")
    with pytest.raises(PluginError, match="plugin 'bad' of distribution 'bad' failed"):
        Registry([plugin_of("bad", backbones=[1])], discover=False).list_backbones()


def test_a_plugin_that_fails_half_way_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    wrong = table("halfnet") + "\n@hookimpl\ndef featuretap_heads(nonsense):\n    return []\n"
    environment = Environment(tmp_path / "environment")
    distributions = {"half": Distribution(wrong), "tiny": GOOD["tiny"]}
    environment.install([write(tmp_path, name, distribution) for name, distribution in distributions.items()])
    facts = json.loads(environment.featuretap("plugins", "--json").stdout)["plugins"]
    half, tiny = (plugin for plugin in facts if plugin["distribution"] != "featuretap")
    assert (half["status"], half["error"].partition(":")[0]) == ("failed", "PluginValidationError")
    assert tiny["provides"]["backbones"] == ["tinynet"]


def test_what_is_not_ours_is_not_discovered_unless_asked(good: Environment) -> None:
    assert good.evaluate("registry.Registry(discover=False).list_backbones('tiny*')") == []


def test_a_module_that_calls_itself_featuretap_is_not_ours() -> None:
    mine = BackboneSpec("mobilenet_v2", stages=((Conv(3, 8, RE),),))
    registry = Registry([plugin_of("featuretap", backbones=[mine])], discover=False)
    assert len(registry.spec("mobilenet_v2", features_only=True).taps) == 5


def test_unknown_names_are_lookup_errors() -> None:
    with pytest.raises(LookupError):
        Registry(discover=False).spec("nothing")


HEAD = HeadSpec("myhead", reads=("C5",), factory="nothing:nothing")


def test_a_head_that_two_plugins_have_is_asked_for_with_its_distribution() -> None:
    plugins = [plugin_of("one", heads=[HEAD]), plugin_of("two", heads=[HEAD])]
    registry = Registry(plugins, discover=False)
    with pytest.raises(UnknownHeadError) as error:
        registry.spec("mobilenet_v2", head="myhead")
    message = "2 plugins have a head named 'myhead'; say which: 'one:myhead' or 'two:myhead'"
    assert (str(error.value), registry.problems) == (message, (message,))
    assert registry.spec("mobilenet_v2", head="two:myhead").head == HEAD


def test_a_built_in_head_is_never_shadowed() -> None:
    mine = HeadSpec("fpn", reads=("C5",), factory="nothing:nothing")
    registry = Registry([plugin_of("one", heads=[mine])], discover=False)
    assert registry.head("fpn") != mine
    assert registry.head("one:fpn") == mine
    assert registry.problems == ("'one' claims the head 'fpn', which is built in and stays; its own is 'one:fpn'",)


def weights(digest: str) -> WeightsEntry:
    return WeightsEntry("mobilenet_v2.mine", "https://example.org/a.pth", digest, "torchvision", 1e-5)


def test_weights_that_two_plugins_have_are_asked_for_with_their_distribution() -> None:
    plugins = [plugin_of("one", weights=[weights("1" * 8)]), plugin_of("two", weights=[weights("2" * 8)])]
    registry = Registry(plugins, discover=False)
    message = "2 plugins have weights 'mine' for 'mobilenet_v2'; say which: 'one:mine' or 'two:mine'"
    for asked in ("mine", "mobilenet_v2.mine"):
        with pytest.raises(UnknownWeightsError) as error:
            registry.build("mobilenet_v2", pretrained=asked)
        assert str(error.value) == message
    assert registry.problems == (message,)
    assert registry.spec("mobilenet_v2", pretrained="two:mine").parameters == 3_504_872


OPEN = {
    "open/known": BackboneSpec("open/known", stages=((Conv(3, 8, RE),),)),
    "open/rubbish": "rubbish",
}


class OpenNamespace:
    """A plugin that knows names without listing them, and counts how often it is asked."""

    __name__ = "opened"

    def __init__(self) -> None:
        self.asked: list[str] = []

    @hookimpl
    def featuretap_find_backbone(self, name: str) -> Any:
        self.asked.append(name)
        if name == "open/broken":
            raise ValueError("no idea")
        if name == "open/knwon":
            raise UnknownBackboneError("there is no 'knwon'; did you mean 'open/known'?")
        return OPEN.get(name)

    @hookimpl
    def featuretap_match_backbones(self, pattern: str) -> Any:
        self.asked.append(pattern)
        return ["open/known"] if pattern.startswith("open/") else None


class BrokenNamespace:
    """A plugin that fails whatever it is asked for, and one that answers nonsense."""

    __name__ = "broken"

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer

    @hookimpl
    def featuretap_find_backbone(self, name: str) -> Any:
        raise ValueError("down")

    @hookimpl
    def featuretap_match_backbones(self, pattern: str) -> Any:
        if self.answer is None:
            raise ValueError("down")
        return self.answer


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "plugin 'broken' of distribution 'broken' failed when it was asked for 'open/*': ValueError: down"),
        ([5], "plugin 'broken' of distribution 'broken' should answer 'open/*' with names in a list, got [5]"),
        ("abc", "plugin 'broken' of distribution 'broken' should answer 'open/*' with names in a list, got 'abc'"),
    ],
)
def test_a_broken_namespace_does_not_hide_the_others(answer: Any, problem: str) -> None:
    registry = Registry([BrokenNamespace(answer), OpenNamespace()], discover=False)
    assert registry.list_backbones("open/*") == ["open/known"]
    assert registry.problems == (problem,)
    assert registry.spec("open/known", features_only=True).taps["C1"].channels == 8
    with pytest.raises(PluginError, match="failed when it was asked for 'open/nothing': ValueError: down"):
        registry.spec("open/nothing")


def test_names_that_do_not_match_are_not_listed() -> None:
    registry = Registry([BrokenNamespace(["open/known", "elsewhere/x"])], discover=False)
    assert registry.list_backbones("open/*") == ["open/known"]


def test_a_declared_name_with_a_slash_is_refused() -> None:
    declared = BackboneSpec("timm/resnet18", stages=((Conv(3, 8, RE),),))
    assert Registry([plugin_of("one", backbones=[declared])], discover=False).problems == (
        "plugin 'one' of distribution 'one' failed: its backbone 'timm/resnet18' has a slash, which names in open "
        "namespaces have; answer featuretap_find_backbone, or choose another name",
    )


def test_an_open_namespace_is_asked_for_names_with_a_slash_and_once() -> None:
    plugin = OpenNamespace()
    registry = Registry([plugin], discover=False)
    for _ in range(2):
        assert registry.spec("open/known", features_only=True).taps["C1"].channels == 8
    assert registry.list_backbones() == Registry(discover=False).list_backbones()
    assert plugin.asked == ["open/known"]
    assert registry.list_backbones("open/*") == ["open/known"]
    assert registry.provider("opened:open/known") == "opened"
    with pytest.raises(UnknownBackboneError, match="no backbone named 'featuretap:open/known'"):
        registry.spec("featuretap:open/known")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "open/broken",
            PluginError,
            "plugin 'opened' of distribution 'opened' failed when it was asked for 'open/broken': ValueError: no idea",
        ),
        (
            "open/rubbish",
            PluginError,
            "plugin 'opened' of distribution 'opened' should return a BackboneSpec for 'open/rubbish', got 'rubbish'",
        ),
        ("open/knwon", UnknownBackboneError, "there is no 'knwon'; did you mean 'open/known'?"),
        ("closed/x", UnknownBackboneError, "no backbone named 'closed/x'; registry.list_backbones() names them"),
    ],
)
def test_an_open_namespace_says_what_it_lacks(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        Registry([OpenNamespace()], discover=False).spec(name)
    assert str(raised.value) == message
