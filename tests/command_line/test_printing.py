"""Names in the output cannot control the terminal."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Completed
from support.data_sets import picture

from featuretap import registry
from featuretap.command_line import main
from featuretap.command_line.printing import echo, print_fields, print_table
from featuretap.support.text import printable

Run = Callable[..., Completed]

CLEAR, ESCAPED = "\x1b[2J\x07", "\\x1b[2J\\x07"
"""A name that clears the screen and rings, and how it is printed."""


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        (CLEAR, ESCAPED),
        ("\r\x9b31m\x7f", "\\r\\x9b31m\\x7f"),
        ("caf\udce9", "caf\\udce9"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("two lines\nand\ta tab", "two lines\nand\ta tab"),
        ("ü×…\u3000犬\U0001f415\xa0", "ü×…\u3000犬\U0001f415\xa0"),
    ],
)
def test_only_what_controls_a_terminal_is_escaped(text: str, printed: str) -> None:
    assert printable(text) == printed


@pytest.mark.parametrize("styled", [True, False])
def test_tables_and_fields_escape_names(
    styled: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    if styled:
        monkeypatch.setenv("FORCE_COLOR", "1")
    print_table(("class", ">images"), [(f"{CLEAR}\n", "1"), ("caf\udce9", "2")])
    print_fields({"class": CLEAR})
    echo(CLEAR, err=True)
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines()]
    assert [lines[-3], lines[-2], lines[-1]] == [[ESCAPED, "1"], ["caf\\udce9", "2"], ["class", ESCAPED]]
    assert captured.err == f"{ESCAPED}\n"


def test_log_lines_escape_names() -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    record = logging.LogRecord("featuretap", logging.WARNING, __file__, 1, "read %s", (CLEAR,), None)
    assert logging.lastResort is not None
    assert logging.lastResort.format(record) == f"read {ESCAPED}"


@pytest.mark.parametrize("command", ["show", "inspect", "predict", "plugins doctor"])
def test_errors_escape_names(run: Run, command: str) -> None:
    status, out, err = run(*command.split(), f"a{CLEAR}\udce9.png")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"a{ESCAPED}\\udce9.png" in err


def test_errors_of_click_escape_names(run: Run) -> None:
    assert run(CLEAR).err.startswith(f"featuretap: No such command '{ESCAPED}'")


def test_predictions_escape_the_names_of_images(run: Run, tmp_path: Path) -> None:
    weights = registry.save(registry.build("mobilenet_v1", width=0.25), tmp_path / "weights.safetensors")
    for name in (f"a{CLEAR}.png", "b\udce9.png"):
        picture(tmp_path / "images" / name)
    status, out, _ = run("predict", tmp_path / "images", "--weights", weights)
    names = [Path(line).name for line in out.splitlines() if line.endswith(".png")]
    assert (status, names) == (0, [f"a{ESCAPED}.png", "b\\udce9.png"])
