"""Follow a page as a reader would: run, read or compare every code block in order."""

import difflib
import json
import re
import shlex
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from packaging.requirements import Requirement
from support import ROOT
from support.pages import FILES, NOT_RUN, Block, agree, blocks, commands, read_page, seen
from support.terminal import Terminal

from featuretap.workflows.training.configuration import SETTINGS, make_configuration

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = {path.name for path in ROOT.glob("requirements*.txt")}
"""What `pip install -r` takes."""
SUFFIXES = {"python": ".py", "toml": ".toml", "json": ".json", "yaml": ".yaml"}
END = "\0\n"
INTERPRETER = f"""
import json, sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", ".torch.jit.*deprecated", FutureWarning)  # the pages say so
scope = {{"__name__": "__main__"}}
for line in sys.stdin:
    exec(compile(*json.loads(line), "exec"), scope)
    print({END[0]!r}, flush=True)
"""
"""Runs blocks in one scope, and ends at the first that fails."""


def installable(words: list[str]) -> bool:
    """Check that names and extras in `pip install` are pyproject.toml's. Only installs from folders ("./") are run."""
    wanted = [word for word in words if not word.startswith("-") and word not in REQUIREMENTS]
    if wanted and all(word.startswith("./") for word in wanted):
        return True
    extras = PROJECT["optional-dependencies"]
    known = {Requirement(name).name for names in (PROJECT["dependencies"], *extras.values()) for name in names}
    for word in wanted:
        # "." is the repository's root.
        asked = Requirement(re.sub(r"^\.(?=\[|$)", "featuretap", word))
        assert asked.name in known | {"featuretap"}, f"pip install {word}: not a distribution of pyproject.toml"
        assert asked.name != "featuretap" or asked.extras <= set(extras), f"pip install {word}: no such extra"
    return False


def a_target(words: list[str]) -> bool:
    """Check that `make` targets exist. They are not run, because they install packages or run the tests."""
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        assert "=" in word or re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE), f"make {word}: no such target"
    return False


CHECKED: dict[str, Callable[[list[str]], bool]] = {"pip install": installable, "make": a_target}
"""Commands that are not run but checked: a function says whether they are to be run after all."""


def to_run(script: str) -> str:
    """Return a script without the lines that are only checked."""
    kept = []
    for line in script.splitlines(keepends=True):
        check = next((name for name in CHECKED if f"{line.strip()} ".startswith(f"{name} ")), None)
        if check is None or CHECKED[check](shlex.split(line, comments=True)[len(check.split()) :]):
            kept.append(line)
    return "".join(kept)


def read_toml(text: str, terminal: Terminal, folder: Path) -> None:
    """Read TOML with featuretap's loader if it is training settings or a catalogue; otherwise only parse it."""
    content = tomllib.loads(text)
    tables = {name for name, value in content.items() if isinstance(value, dict)}
    if "schema" in content or tables & {"backbones", "weights", "plugins", "mirrors"}:
        path = folder / "a-catalogue.toml"
        path.write_text(text if "schema" in content else f"schema = 1\n{text}")
        ran = terminal.run("featuretap list", folder, FEATURETAP_CONFIG=str(path), FEATURETAP_STRICT="1")
        assert ran.returncode == 0, ran.stderr
        path.unlink()
    elif content.keys() <= SETTINGS.keys():
        make_configuration({"data": "photographs", "backbone": "mobilenet_v2", **content})


class Reader:
    """A reader who follows a page in a folder, in a terminal.

    Attributes:
        did: how each block was handled: "run", "read", "written", "compared" or "not run".
    """

    def __init__(self, folder: Path, terminal: Terminal) -> None:
        self.folder = folder
        self._terminal = terminal
        self.did: Counter[str] = Counter()
        self._python: subprocess.Popen[str] | None = None
        self._errors = folder.with_name(f"{folder.name}-errors.txt")

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._python:
            self._python.communicate()

    def follow(self, page: str) -> None:
        """Follow a page.

        Raises:
            AssertionError: a block fails, or its output differs.
            ValueError: the page has a block that cannot be followed.
        """
        for block in blocks(page):
            try:
                self.did[self._do(block)] += 1
            except Exception as error:
                error.add_note(f"in the block at line {block.line}")
                raise

    def _do(self, block: Block) -> str:
        if block.why_not_run is not None:
            return "not run"
        path = self._named(block)
        if path is not None:
            return self._file(block, path)
        if block.language == "text":
            return "read"
        if block.language in ("bash", "console"):
            (self._bash if block.language == "bash" else self._session)(block)
            return "run"
        if block.language == "python":
            self._compare(block.printed or "", self._run_python(block))
            return "run"
        readers: dict[str, Callable[[str], Any]] = {"json": json.loads, "yaml": yaml.safe_load}
        if block.language == "toml":
            read_toml(block.text, self._terminal, self.folder)
        else:
            readers[block.language](block.text)
        return "read"

    def _named(self, block: Block) -> Path | None:
        """Return the file that the preceding text names for a block, if it exists or the page says to write it."""
        suffix = SUFFIXES.get(block.language)
        paths = re.findall(rf"`([\w.-]+/[\w./-]+{re.escape(suffix)})`", block.before) if suffix else []
        if not paths:
            return None
        path = self.folder / paths[-1]
        return path if path.exists() or self._to_write(block, paths[-1]) else None

    def _to_write(self, block: Block, name: str) -> bool:
        return re.search(rf"(Replace|Write)\s+`{re.escape(name)}", block.before) is not None

    def _file(self, block: Block, path: Path) -> str:
        if self._to_write(block, str(path.relative_to(self.folder))):
            path.write_text(block.text)
            return "written"
        self._compare(block.text, path.read_text())
        return "compared"

    def _run_python(self, block: Block) -> str:
        if self._python is None:
            self._python = self._terminal.interpreter(INTERPRETER, self.folder, self._errors)
        assert self._python.stdin
        assert self._python.stdout
        self._python.stdin.write(json.dumps([block.text, f"line {block.line}"]) + "\n")
        self._python.stdin.flush()
        out = ""
        while not out.endswith(END):
            line = self._python.stdout.readline()
            assert line, f"{block.text}\n{out}\n{self._errors.read_text()}"
            out += line
        return out.removesuffix(END)

    def _bash(self, block: Block) -> None:
        ran = self._shell("set +u", to_run(block.text))
        assert ran.returncode == 0, f"{block.text}\n{ran.stdout}"
        if block.printed is not None:
            self._compare(block.printed, ran.stdout)

    def _session(self, block: Block) -> None:
        """Run the commands of a session. A failing command is allowed if its output matches."""
        stated = [(command, printed) for command, printed in commands(block.text) if to_run(command) == command]
        ran = self._shell("set +eu", *(f"{command}\nprintf '\\n\\0\\n'" for command, _ in stated))
        outputs = ran.stdout.split("\0")
        assert len(outputs) == len(stated) + 1, ran.stdout
        for (command, printed), out in zip(stated, outputs, strict=False):
            self._compare(f"$ {command}{printed}", f"$ {command}{out}")

    def _shell(self, *lines: str) -> subprocess.CompletedProcess[str]:
        return self._terminal.run("\n".join((*lines[:1], "exec 2>&1", *lines[1:])), self.folder)

    def _compare(self, stated: str, printed: str) -> None:
        if not agree(stated, printed):
            lines = difflib.unified_diff(seen(stated), seen(printed), "the page", "what is printed", lineterm="")
            raise AssertionError("\n".join(lines))


def follow_page(name: str, reader: Reader) -> None:
    """Follow a page of the repository, and check how many blocks were not run, written and compared."""
    reader.follow(read_page(ROOT / name))
    assert reader.did["not run"] == NOT_RUN.get(name, 0)
    assert (reader.did["written"], reader.did["compared"]) == FILES.get(name, (0, 0))
