"""Closed or full standard streams and deleted folders cause at most a one-line error and a documented exit status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.distributions import Distribution, write_installed

COMMAND = f"{sys.executable} -m featuretap.command_line"
NO_MATCH = "featuretap: no backbone matches 'nothing'; see featuretap list\n"


def shell(line: str, folder: Path | None = None, **variables: str) -> tuple[int, str, str]:
    ran = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=folder, env={**os.environ, **variables}
    )
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.parametrize("arguments", ["list", "plugins", "--help"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_like_the_null_device(arguments: str, closed: str) -> None:
    status, out, err = shell(f"{COMMAND} {arguments} {closed}")
    assert (status, err) == (0, "")
    assert bool(out) == (">&-" not in closed.split())


@pytest.mark.parametrize(
    ("streams", "printed"),
    [
        (">&-", NO_MATCH),
        ("2>&-", ""),
        (">&- 2>&-", ""),
        ("2>/dev/full", ""),
        ("2> >(true)", ""),
        (">/dev/full", NO_MATCH),
    ],
)
def test_bad_input_has_its_status_wherever_its_message_goes(streams: str, printed: str) -> None:
    assert shell(f"{COMMAND} list nothing {streams}") == (2, "", printed)


@pytest.mark.parametrize("arguments", ["show mobilenet_v2 --json", "--help"])
@pytest.mark.parametrize(
    ("output", "reason"), [("/dev/full", "No space left on device"), ("limited.txt", "File too large")]
)
def test_a_full_output_is_reported(tmp_path: Path, arguments: str, output: str, reason: str) -> None:
    limited = "ulimit -f 0; " if output == "limited.txt" else ""
    message = f"featuretap: cannot print: {reason}\n"
    assert shell(f"{limited}{COMMAND} {arguments} >{output}", tmp_path) == (2, "", message)
    assert shell(f"{limited}{COMMAND} {arguments} >{output} 2>&1", tmp_path) == (2, "", "")


@pytest.mark.parametrize("number", [1, 2])
def test_a_plugin_that_closes_a_stream_leaves_it_open_for_others(tmp_path: Path, number: int) -> None:
    write_installed(tmp_path, {"closing": Distribution(f"import os\nos.close({number})\n")})
    status, out, err = shell(f"{COMMAND} list", PYTHONPATH=str(tmp_path))
    assert (status, out.count("mobilenet_v3_large ")) == (0, 1)
    assert err.startswith("plugin 'closing' of distribution 'featuretap-closing' failed: it implements no hooks; ")
    assert err.endswith("\nsee featuretap plugins\n")


@pytest.mark.parametrize("arguments", ["list", "predict x.png"])
def test_a_folder_that_was_deleted_is_named_before_anything_is_imported(tmp_path: Path, arguments: str) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    message = "featuretap: cannot access the current folder: No such file or directory; change to another folder\n"
    assert shell(f"rmdir ../gone; {COMMAND} {arguments}", folder) == (2, "", message)
    status, out, _ = shell(f"{COMMAND} --help", tmp_path)
    assert (status, out[:6]) == (0, "Usage:")


@pytest.mark.parametrize(
    "variables",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"HOME": "/nonexistent", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": "", "TORCH_HOME": ""},
    ],
    ids=["C locale", "ascii", "no home"],
)
def test_no_locale_and_no_home_are_needed(variables: dict[str, str]) -> None:
    status, out, err = shell(f"{COMMAND} list mobilenet_v2; {COMMAND} show $'a\\xff\\xe9'", **variables)
    assert "mobilenet_v2 " in out
    assert (status, err) == (2, "featuretap: no backbone named 'a\\udcff\\udce9'; see `featuretap list`\n")
