"""The page reader follows correct pages and fails on wrong ones."""

import textwrap

import pytest
import yaml
from support.reader import Reader

from featuretap.registry.errors import FeaturetapError


def fenced(language: str, text: str, printed: str | None = None) -> str:
    page = f"```{language}\n{text}\n```\n"
    return page if printed is None else f"{page}\n```text\n{printed}\n```\n"


@pytest.mark.parametrize(
    "page",
    [
        fenced("python", "print(1)", "1"),
        fenced("python", "print(1.25, 'second')\nprint(2)\nprint(3)", "…second\n…\n3"),
        fenced("python", "a = 1") + fenced("python", "print(a)", "1"),
        fenced("python", "print(1, end='')", "1"),
        fenced("bash", "touch b\nls b", "b"),
        fenced("bash", "false || true"),
        fenced("console", "$ echo a\na\n$ cat b\ncat: b: No such file or directory\n$ echo \\\n> c\nc"),
        fenced("bash", "pip install 'featuretap[train]' # comment\nmake PYTHON=python3.12 demo\nmake"),
        fenced("bash", "pip install torch '.[onnxruntime]'"),
        fenced("bash", "pip install -r requirements-inference.txt"),
        fenced("toml", "epochs = 3\n[options]\nwidth = 0.5"),
        fenced("toml", "[backbones.our_net]\nbase = 'mobilenet_v2'\noptions = { width = 0.5 }"),
        fenced("toml", "[project]\nname = 'anything'"),
        fenced("json", '{"a": 1}'),
        fenced("yaml", "a: 1"),
        fenced("text", "anything"),
        "- A list:\n\n" + textwrap.indent(fenced("python", "if True:\n    print(1)", "1"), "  "),
        "<!-- not run: it takes a year -->\n\n" + fenced("python", "raise ValueError"),
        "Write `a/b.py`:\n\n" + fenced("python", "print(") + "`a/b.py` is:\n\n" + fenced("python", "print("),
    ],
)
def test_a_good_page_can_be_followed(page: str, empty: Reader) -> None:
    (empty.folder / "a").mkdir()
    empty.follow(page)


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (fenced("python", "print(1)", "2"), "-2\n+1"),
        (fenced("python", "print(1)"), "+1"),
        (fenced("python", "print(1)\nprint(2)", "1"), "+2"),
        (fenced("python", "print(1)\nprint(2)", "…\n1"), "+2"),
        (fenced("python", "a = b"), "NameError: name 'b' is not defined"),
        (fenced("python", "import warnings\nwarnings.warn('old')"), "UserWarning: old"),
        (fenced("python", "import sys\nsys.exit()"), "sys.exit"),
        (
            fenced("python", "import urllib.request as r\nr.urlopen('http://192.0.2.1')"),
            "no test may connect to 192.0.2.1",
        ),
        (
            fenced("bash", "python -c \"import urllib.request as r; r.urlopen('http://192.0.2.1')\""),
            "no test may connect to 192.0.2.1",
        ),
        (fenced("bash", "false\ntrue"), "false"),
        (fenced("bash", "featuretap show nonsense_net"), "nonsense_net"),
        (fenced("bash", "echo a", "b"), "-b\n+a"),
        (fenced("bash", "echo a >&2", "b"), "-b\n+a"),
        (fenced("console", "$ echo a\nb\n$ echo c\nc"), "-b\n+a"),
        (fenced("console", "$ false\n$ ls nothing"), "No such file"),
        (fenced("console", "echo a"), "a session begins with a command"),
        (fenced("bash", "pip install 'featuretap[trains]'"), "no such extra"),
        (fenced("bash", "pip install '.[trains]'"), "no such extra"),
        (fenced("bash", "pip install featuretaps"), "not a distribution of pyproject"),
        (fenced("bash", "pip install -r requirements-nobody.txt"), "not a distribution of pyproject"),
        (fenced("bash", "pip install ./nothing"), "nothing"),
        (fenced("bash", "make cofee"), "make cofee: no such target"),
        (fenced("toml", "a ="), "Invalid value"),
        (fenced("toml", "epochs = 'many'"), "epochs='many'"),
        (fenced("toml", "[backbones.our_net]\nbase = 'mobilenet_v22'"), "mobilenet_v22"),
        (fenced("json", "{a: 1}"), "Expecting property name"),
        (fenced("yaml", "a: b: c"), "mapping values"),
        ("<!-- not run: but far above -->\nWords.\n\n" + fenced("python", "a"), "NameError"),
        ("Write `a/b.py`:\n\n" + fenced("python", "1") + "`a/b.py` is:\n\n" + fenced("python", "2"), "-2\n+1"),
    ],
)
def test_a_page_that_is_wrong_fails(page: str, problem: str, empty: Reader) -> None:
    (empty.folder / "a").mkdir()
    with pytest.raises((AssertionError, ValueError, FeaturetapError, yaml.YAMLError)) as raised:
        empty.follow(page)
    assert problem in str(raised.value)
