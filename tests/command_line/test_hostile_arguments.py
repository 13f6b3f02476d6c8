"""Huge numbers, overlong names, circular links and too little memory each cause a one-line error."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support import Completed

from featuretap import registry

Run = Callable[..., Completed]

NINES = "9" * 30
LONG = "a" * 300


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("show", "mobilenet_v2", "--size", NINES), f"'{NINES}' is too large; height and width can be at most 65536"),
        (("show", "mobilenet_v2", "--size", "65537x1"), "'65537x1' is too large; height and width can be at most"),
        (("show", "mobilenet_v2", "--size", "9" * 5000), "is too large; height and width can be at most 65536 pixels"),
        (("show", "mobilenet_v2", "--head", "fpn", "--num-classes", NINES), f"{NINES} is not in the range"),
        (("export", "mobilenet_v2", "x.onnx", "--batch", NINES), f"{NINES} is not in the range"),
        (("bench", "mobilenet_v2", "--batch", NINES), f"{NINES} is not in the range"),
        (("bench", "mobilenet_v2", "--threads", NINES), f"{NINES} is not in the range"),
        (("predict", "x.png", "--batch-size", NINES), f"{NINES} is not in the range"),
        (("extract", "x", "--out", "y", "--workers", NINES), f"{NINES} is not in the range"),
        (("evaluate", "x", "--weights", "y", "--seed", NINES), f"{NINES} is not in the range"),
    ],
    ids=lambda value: "-".join(value[::3])[:40] if isinstance(value, tuple) else "",
)
def test_numbers_at_which_libraries_overflow_are_refused(run: Run, arguments: tuple[str, ...], problem: str) -> None:
    ran = run(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert problem in ran.err
    assert ran.err.startswith("featuretap: Invalid value for '--")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("predict", LONG), f"cannot read the image '{LONG}': File name too long"),
        (("taps", LONG), f"cannot read the image '{LONG}': File name too long"),
        (("new-plugin", LONG), f"cannot access '{LONG}': File name too long; choose another path"),
    ],
    ids=["predict", "taps", "new-plugin"],
)
def test_names_that_are_too_long_are_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(*arguments)
    assert ran.status == 2
    assert ran.err.endswith(f"{problem}\n")
    assert ran.err.count("\n") == 1


def test_a_message_is_never_longer_than_a_thousand_characters(run: Run) -> None:
    for text in ("a" * 5000, "\x1b" * 900, "\udcff" * 900):
        ran = run("show", text)
        assert ran.status == 2
        assert len(ran.err) <= len("featuretap: \n") + 1000


def test_a_folder_for_pictures_that_is_a_link_in_a_circle_is_named(run: Run, cat: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    ran = run("predict", cat.parent, "--weights", "none", "--out", tmp_path / "loop")
    assert ran.status == 2
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"),
    ],
    ids=["Python", "PyTorch", "CUDA"],
)
def test_too_little_memory_is_a_line(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(registry, "list_backbones", fail)
    ran = run("list")
    message = "out of memory; use smaller images, a smaller batch or a smaller model"
    assert (ran.status, ran.out, ran.err) == (2, "", f"featuretap: {message}\n")


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, OSError])
def test_our_own_bugs_keep_their_traceback(run: Run, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def fail(*_: object) -> None:
        raise kind("a bug")

    monkeypatch.setattr(registry, "list_backbones", fail)
    with pytest.raises(kind, match="a bug"):
        run("list")
