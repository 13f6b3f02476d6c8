"""Help with examples to copy, colors in terminals only, and tables that other programs can parse."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from support import Completed

import featuretap
from featuretap.command_line import SECTIONS, command

PROGRAM = (sys.executable, "-m", "featuretap.command_line")
OTHERS = re.compile(r"\s(?:>>|>|&&|\|)\s.*")
"""What of a line is the shell's, and other programs'."""
DEFAULT = re.compile(r"  \[default: .+\]$")
ESCAPE = "\x1b"
COLOUR = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-9]|9[0-7])(?:;[0-9]+)*m")


def walk(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    for name, child in group.commands.items():
        yield (*path, name)
        if isinstance(child, click.Group):
            yield from walk(child, *path, name)


PATHS = [(), *walk(command)]


def found(path: tuple[str, ...]) -> click.Command:
    at: click.Command = command
    for name in path:
        assert isinstance(at, click.Group)
        at = at.commands[name]
    return at


def help_of(path: tuple[str, ...], width: int = 80) -> str:
    return CliRunner().invoke(command, [*path, "--help"], prog_name="featuretap", terminal_width=width).output


def examples(path: tuple[str, ...], width: int = 80) -> list[str]:
    """Return the lines of the examples section in a command's help."""
    block = help_of(path, width).partition("  Example:\n")[2].partition("\n\n")[0]
    assert all(line.startswith("    ") for line in block.splitlines())
    return [line[4:] for line in block.splitlines()]


def test_subcommands_are_among_the_commands_checked() -> None:
    assert ("plugins", "doctor") in PATHS
    assert len(PATHS) > 16


@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_every_command_has_an_example(path: tuple[str, ...]) -> None:
    assert any(f"{line} ".startswith(" ".join(("featuretap", *path, ""))) for line in examples(path))


@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_every_example_parses(path: tuple[str, ...]) -> None:
    for line in examples(path):
        words = shlex.split(OTHERS.sub("", line))
        if words.pop(0) != "featuretap":
            continue
        at: click.Command = command
        while isinstance(at, click.Group) and words:
            at = at.commands[words.pop(0)]
        with at.make_context(at.name, words) as context:
            # click only checks that the arguments parse; the command itself checks how they combine.
            assert not context.args


@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_examples_are_not_wrapped_at_any_width(path: tuple[str, ...]) -> None:
    whole = found(path).examples  # type: ignore[attr-defined]
    assert all(examples(path, width) == whole for width in range(60, 121))


@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_every_option_and_argument_is_described_with_its_default(path: tuple[str, ...]) -> None:
    at = found(path)
    context = click.Context(at, info_name="featuretap", **command.context_settings)
    for param in at.get_params(context):
        assert param.help, param.name
        assert DEFAULT.sub("", param.help).endswith("."), param.name
        record = param.get_help_record(context)
        # Flags are off by default, which the help does not state.
        if param.default not in (None, False, (), "") and type(param.default).__name__ != "Sentinel":
            assert record is not None
            assert "[default: " in record[1], param.name


def test_help_begins_with_what_featuretap_does() -> None:
    text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "Build, train, evaluate, export and run models for classification, detection and segmentation. " in text


def test_the_help_of_batches_explains_both_ways() -> None:
    text = " ".join(CliRunner().invoke(command, ["train", "--help"]).output.split())
    assert (
        "With several heads, alternate: one data set per update, larger sets more often; mixed: one batch of every set "
        "per update. [default: alternate]"
    ) in text


def test_help_lists_every_command_in_one_line_under_a_heading() -> None:
    text = help_of(())
    assert max(map(len, text.splitlines())) <= 80
    for name, child in command.commands.items():
        assert re.search(rf"^  {name} +{re.escape(child.get_short_help_str())}$", text, re.MULTILINE), name
    assert "..." not in text.partition("Options:")[2]
    headings = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert headings == ["Options", "Catalogue", "Images", "Training", "Weights", "Runtimes", "Plugins", "Setup"]
    assert sum(map(len, SECTIONS.values())) == len(command.commands)


def environment(**more: str) -> dict[str, str]:
    silent = ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    kept = {name: value for name, value in os.environ.items() if name not in silent}
    return {**kept, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "COLUMNS": "100", **more}


@cache
def piped(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, env=environment(**more))


def in_terminal(*arguments: str, **more: str) -> str:
    """Return the standard output and standard error of a command that runs in a terminal."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**more)
    )
    os.close(theirs)
    got = b""
    try:
        while block := os.read(ours, 4096):
            got += block
    except OSError:
        # On Linux, reading from a terminal raises an error after the last writer has closed it.
        pass
    finally:
        os.close(ours)
    assert process.wait() == 0, got.decode()
    return got.decode()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = featuretap.registry.build("mobilenet_v1_025", features_only=True, taps=("C2",))
    return str(featuretap.registry.save(model, tmp_path_factory.mktemp("weights") / "weights.safetensors"))


COMMANDS = {"list": ["list"], "heads": ["list", "--heads"], "show": ["show", "mobilenet_v2"], "plugins": ["plugins"]}


@pytest.fixture(params=[*COMMANDS, "inspect"])
def words(request: pytest.FixtureRequest, weights: str) -> list[str]:
    return COMMANDS.get(request.param, ["inspect", weights, "--tensors"])


def test_terminals_get_bold_column_titles(words: list[str]) -> None:
    assert "\x1b[1m" in in_terminal(*words)


def test_no_color_turns_escape_sequences_off(words: list[str]) -> None:
    assert ESCAPE not in in_terminal(*words, NO_COLOR="1")


@pytest.mark.parametrize("more", [{"TERM": "dumb"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}])
def test_escape_sequences_are_off_in_dumb_terminals_and_where_no_color_meets_force_color(more: dict[str, str]) -> None:
    assert ESCAPE not in in_terminal("plugins", **more)


def test_an_empty_no_color_is_ignored() -> None:
    assert ESCAPE in in_terminal("plugins", NO_COLOR="")


def test_pipes_get_escape_sequences_only_with_force_color(words: list[str]) -> None:
    ran = piped(*words)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ESCAPE not in ran.stdout
    assert "\x1b[1m" in piped(*words, FORCE_COLOR="1").stdout


@pytest.mark.parametrize(
    "words", [["list"], ["list", "--heads"], ["show", "mobilenet_v2", "--head", "fpn"]], ids=" ".join
)
def test_tables_in_pipes_are_those_of_a_terminal_without_styles(words: list[str]) -> None:
    """Piped tables are written without rich; FORCE_COLOR makes rich write them."""
    plain = piped(*words).stdout
    assert plain.count("\n") > 5
    assert plain == piped(*words, FORCE_COLOR="1", NO_COLOR="1").stdout


def test_errors_are_plain_in_a_pipe() -> None:
    assert piped("show", "nobody").stderr == "featuretap: no backbone named 'nobody'; see `featuretap list`\n"


BENCH = ("bench", "mobilenet_v1_025", "--rounds", "2", "--size", "32")


def test_progress_bars_are_not_written_to_pipes(run: Callable[..., Completed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    ran = run(*BENCH)
    assert (ran.status, ran.err) == (0, "")


def test_progress_bars_in_a_terminal_respect_no_color() -> None:
    shown = in_terminal(*BENCH, NO_COLOR="1")
    assert "measuring" in shown
    assert not COLOUR.search(shown)
    assert COLOUR.search("\x1b[38;5;237m")


@pytest.mark.parametrize("more", [{}, {"COLUMNS": "60"}])
def test_tables_in_pipes_have_one_line_per_row_at_any_width(words: list[str], more: dict[str, str]) -> None:
    check_rows(words, more)


def test_tables_in_pipes_have_one_line_per_row_in_dumb_terminals_too() -> None:
    check_rows(["list"], {"COLUMNS": "60", "TERM": "dumb"})


def check_rows(words: list[str], more: dict[str, str]) -> None:
    out = piped(*words, **more).stdout
    lines = out.splitlines()
    assert len(lines) == len(piped(*words).stdout.splitlines())
    assert all(line and line == line.rstrip() for line in lines)
    assert out.endswith("\n")
    assert "…" not in out


def test_a_piped_list_has_column_titles_and_one_backbone_per_line() -> None:
    lines = piped("list", COLUMNS="60").stdout.splitlines()
    names = featuretap.registry.list_backbones()
    assert lines[0].split()[:3] == ["name", "parameters", "MACs"]
    assert [line.split()[0] for line in lines[2 : 2 + len(names)]] == names


def test_tables_fit_the_width_of_the_terminal() -> None:
    assert max(map(len, in_terminal("list", COLUMNS="60", NO_COLOR="1").splitlines()[:-2])) <= 60


@pytest.mark.parametrize("arguments", ["list", "show mobilenet_v2", "show mobilenet_v2 --json", "plugins"])
def test_output_can_be_piped_into_head(arguments: str) -> None:
    line = f"{shlex.join(PROGRAM)} {arguments} | head -1; echo ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment())
    first, status = ran.stdout.splitlines()
    assert first == piped(*arguments.split()).stdout.splitlines()[0]
    assert ran.stderr == ""
    # The command may write everything before the reader exits.
    assert status in ("0", "141")


def test_version_is_one_line(tmp_path: Path) -> None:
    assert piped("--version").stdout == f"featuretap {featuretap.__version__}\n"


def test_a_full_disk_behind_standard_output_is_a_one_line_error() -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run([*PROGRAM, "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (2, "featuretap: cannot print: No space left on device\n")
