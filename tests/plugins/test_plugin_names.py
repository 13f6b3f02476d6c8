"""Names that plugins provide: precedence, ambiguous names and namespaces."""

from typing import Any

import pytest
from support.distributions import plugin_of

from featuretap.registry import Registry
from featuretap.registry.errors import PluginError, UnknownBackboneError, UnknownHeadError, UnknownWeightsError
from featuretap.registry.hookspecs import WeightsEntry, hookimpl
from featuretap.registry.specs import RE, BackboneSpec, Conv, HeadSpec


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
    message = "2 plugins provide a head named 'myhead'; choose one: 'one:myhead' or 'two:myhead'"
    assert (str(error.value), registry.problems) == (message, (message,))
    assert registry.spec("mobilenet_v2", head="two:myhead").head == HEAD


def test_a_built_in_head_is_never_shadowed() -> None:
    mine = HeadSpec("fpn", reads=("C5",), factory="nothing:nothing")
    registry = Registry([plugin_of("one", heads=[mine])], discover=False)
    assert registry.head("fpn") != mine
    assert registry.head("one:fpn") == mine
    assert registry.problems == (
        "'one' provides the head 'fpn', which is built in and cannot be replaced; use 'one:fpn' for the plugin's",
    )


def weights(digest: str) -> WeightsEntry:
    return WeightsEntry("mobilenet_v2.mine", "https://example.org/a.pth", digest, "torchvision", 1e-5)


def test_weights_that_two_plugins_have_are_asked_for_with_their_distribution() -> None:
    plugins = [plugin_of("one", weights=[weights("1" * 8)]), plugin_of("two", weights=[weights("2" * 8)])]
    registry = Registry(plugins, discover=False)
    message = "2 plugins provide weights 'mine' for 'mobilenet_v2'; choose one: 'one:mine' or 'two:mine'"
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
    """A plugin that resolves names it does not list, and records each request."""

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
    """A plugin that fails on every name, and lists invalid names if it has an `answer`."""

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
        (None, "plugin 'broken' of distribution 'broken' failed on the request for 'open/*': ValueError: down"),
        ([5], "plugin 'broken' of distribution 'broken' must return a list of names for 'open/*'; got [5]"),
        ("abc", "plugin 'broken' of distribution 'broken' must return a list of names for 'open/*'; got 'abc'"),
    ],
)
def test_a_broken_namespace_does_not_hide_the_others(answer: Any, problem: str) -> None:
    registry = Registry([BrokenNamespace(answer), OpenNamespace()], discover=False)
    assert registry.list_backbones("open/*") == ["open/known"]
    assert registry.problems == (problem,)
    assert registry.spec("open/known", features_only=True).taps["C1"].channels == 8
    with pytest.raises(PluginError, match="failed on the request for 'open/nothing': ValueError: down"):
        registry.spec("open/nothing")


def test_names_that_do_not_match_are_not_listed() -> None:
    registry = Registry([BrokenNamespace(["open/known", "elsewhere/x"])], discover=False)
    assert registry.list_backbones("open/*") == ["open/known"]


def test_a_declared_name_with_a_slash_is_refused() -> None:
    declared = BackboneSpec("timm/resnet18", stages=((Conv(3, 8, RE),),))
    assert Registry([plugin_of("one", backbones=[declared])], discover=False).problems == (
        "plugin 'one' of distribution 'one' failed: its backbone 'timm/resnet18' has a slash, which is reserved for "
        "namespaces; implement featuretap_find_backbone, or choose another name",
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
            "plugin 'opened' of distribution 'opened' failed on the request for 'open/broken': ValueError: no idea",
        ),
        (
            "open/rubbish",
            PluginError,
            "plugin 'opened' of distribution 'opened' must return a BackboneSpec for 'open/rubbish'; got 'rubbish'",
        ),
        ("open/knwon", UnknownBackboneError, "there is no 'knwon'; did you mean 'open/known'?"),
        ("closed/x", UnknownBackboneError, "no backbone named 'closed/x'; see registry.list_backbones()"),
    ],
)
def test_errors_of_an_open_namespace_are_reported(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        Registry([OpenNamespace()], discover=False).spec(name)
    assert str(raised.value) == message
