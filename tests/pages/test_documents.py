"""Every block of every page works, and every link leads somewhere."""

import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support import ROOT
from support.distributions import Environment
from support.pages import PAGES, broken_links
from support.reader import Reader, surroundings
from support.reader_files import belongings

from featuretap.registry.errors import FeaturetapError

NOT_RUN = {"docs/benchmarks.md": 1, "docs/export.md": 1, "docs/quantization.md": 1, "docs/training.md": 3}
"""Page → how many of its blocks no test runs; the page says why."""

NOT_FOLLOWED = {"RELEASING.md"}
"""It publishes a release."""

FILES = {"docs/plugins.md": (5, 5)}
"""Page → how many of its blocks are files that it writes, and that lie there and are compared."""

NAMES = [str(path.relative_to(ROOT)) for path in PAGES]


@pytest.fixture(scope="session")
def owned(tmp_path_factory: pytest.TempPathFactory, official_weights: Path) -> Path:
    return belongings(tmp_path_factory.mktemp("belongings"), official_weights)


@pytest.fixture
def reader(tmp_path: Path, owned: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    folder = Path(shutil.copytree(owned, tmp_path / "folder", symlinks=True))
    for name, value in surroundings(folder).items():
        monkeypatch.setenv(name, value)
    with Reader(folder, Environment(tmp_path / "environment")) as reader:
        yield reader


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """A reader who has nothing."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, value in surroundings(folder).items():
        monkeypatch.setenv(name, value)
    with Reader(folder, Environment(tmp_path / "environment")) as reader:
        yield reader


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_FOLLOWED])
def test_following_a_page_works_to_the_letter(name: str, reader: Reader) -> None:
    reader.follow((ROOT / name).read_text())
    assert reader.did["not run"] == NOT_RUN.get(name, 0)
    assert (reader.did["written"], reader.did["compared"]) == FILES.get(name, (0, 0))


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path) == []


def test_the_pages_are_found() -> None:
    assert {"README.md", "docs/heads.md", "examples/featuretap-mobilenet-v4/README.md"} <= set(NAMES)
    assert {*NOT_RUN, *NOT_FOLLOWED, *FILES} <= set(NAMES)


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
        (fenced("bash", "pip install ./nothing"), "nothing"),
        (fenced("bash", "make cofee"), "make cofee: no such target"),
        (fenced("toml", "a ="), "Invalid value"),
        (fenced("toml", "epochs = 'many'"), "epochs='many'"),
        (fenced("toml", "[backbones.our_net]\nbase = 'mobilenet_v22'"), "mobilenet_v22"),
        (fenced("json", "{a: 1}"), "Expecting property name"),
        (fenced("yaml", "a: b: c"), "mapping values"),
        (fenced("rust", "fn main() {}"), "line 1: a block in 'rust'"),
        (fenced("", "a"), "line 1: a block in ''"),
        ("```python\n", "line 1: a block without an end"),
        ("<!-- not run -->\n" + fenced("python", "1"), "why is this block not run"),
        ("<!-- not run: -->\n" + fenced("python", "1"), "why is this block not run"),
        ("<!-- not run: but far above -->\nWords.\n\n" + fenced("python", "a"), "NameError"),
        ("Write `a/b.py`:\n\n" + fenced("python", "1") + "`a/b.py` is:\n\n" + fenced("python", "2"), "-2\n+1"),
    ],
)
def test_a_page_that_is_wrong_fails(page: str, problem: str, empty: Reader) -> None:
    (empty.folder / "a").mkdir()
    with pytest.raises((AssertionError, ValueError, FeaturetapError, yaml.YAMLError)) as raised:
        empty.follow(page)
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("page", "broken"),
    [
        ("[a](other.md) [b](other.md#a-title--more) [c](folder/) ![d](picture.png)", []),
        ("# Here `code`\n\n[a](#here-code) [b](https://nobody.example/x#y) [c](mailto:a@b.c)", []),
        ("# Twice\n# Twice\n[a](#twice-1)", []),
        ("```text\n[a](nowhere.md)\n```\nand `[b](nowhere.md)`", []),
        ("[a](nowhere.md)", ["nowhere.md"]),
        ("[a](other.md#nothing)", ["other.md#nothing"]),
        ("[a](#nothing)", ["#nothing"]),
        ("```text\n# No title\n```\n[a](#no-title)", ["#no-title"]),
        ("![a](nowhere.png)", ["nowhere.png"]),
        ('<img src="nowhere.png">', ["nowhere.png"]),
        ("[a][b]\n\n[b]: nowhere.md", ["nowhere.md"]),
        ("# Twice\n[a](#twice-1)", ["#twice-1"]),
    ],
)
def test_links_that_lead_nowhere_are_found(page: str, broken: list[str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "picture.png").touch()
    (tmp_path / "other.md").write_text("# A title – *more*\n")
    (tmp_path / "page.md").write_text(page)
    assert broken_links(tmp_path / "page.md") == broken
