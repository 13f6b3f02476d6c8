"""Progress within an epoch: a progress bar in a terminal, log lines elsewhere."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Timer
from threading import enumerate as enumerate_threads

import pytest
from support import Completed
from support.training_runs import COLOURS, coloured_folder, small_run

from featuretap import registry
from featuretap.support import progress
from featuretap.support.progress import bar, end_of_run, format_epoch, progress_steps
from featuretap.workflows.training.run import evaluate, train

Run = Callable[..., Completed]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A fake clock that only advances when a test sets it."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_logged_at_intervals_with_the_time_left(clock: list[float]) -> None:
    lines: list[str] = []
    with bar("epoch 1 of 2", 400, shown=True, log=lines.append, every=60) as advance:
        for seconds in (50, 15, 50, 5, 5):
            clock[0] += seconds
            advance(50, "loss 0.5000")
    assert lines == [
        "epoch 1 of 2: 100/400  loss 0.5000  0:03:15 left",
        "epoch 1 of 2: 250/400  loss 0.5000  0:01:15 left",
    ]


def test_lines_show_the_time_left_of_the_run_until_it_is_over(clock: list[float]) -> None:
    lines: list[str] = []
    with bar("epoch 2 of 9", 40, shown=True, log=lines.append, every=60, end=lambda end: 3800.0) as advance:
        for seconds in (100, 3500, 200):
            clock[0] += seconds
            advance(10)
    assert lines == [
        "epoch 2 of 9: 10/40  0:05:00 left (run: 1:00:00)",
        "epoch 2 of 9: 20/40  1:00:00 left (run: 0:01:40)",
        "epoch 2 of 9: 30/40  0:21:07 left (run: 0:00:00)",
    ]


def test_the_first_epoch_estimates_the_time_left_of_the_run_from_its_steps(clock: list[float]) -> None:
    lines: list[str] = []
    start = clock[0]
    for label, total in (("epoch 1 of 3", 40), ("evaluating epoch 1 of 3", 20)):
        with bar(
            label, total, shown=True, log=lines.append, every=60, end=partial(end_of_run, start, 3, ())
        ) as advance:
            for _ in range(total // 10):
                clock[0] += 100
                advance(10)
    assert lines == [
        "epoch 1 of 3: 10/40  0:05:00 left (run: 0:18:20)",
        "epoch 1 of 3: 20/40  0:03:20 left (run: 0:16:40)",
        "epoch 1 of 3: 30/40  0:01:40 left (run: 0:15:00)",
        "epoch 1 of 3: 40/40  0:00:00 left (run: 0:13:20)",
        "evaluating epoch 1 of 3: 10/20  0:01:40 left (run: 0:21:40)",
        "evaluating epoch 1 of 3: 20/20  0:00:00 left (run: 0:20:00)",
    ]


def test_later_epochs_take_as_long_as_those_before() -> None:
    assert end_of_run(1000.0, 3, [{"seconds": 60.0}, {"seconds": 80.0}], 5000.0) == 1000 + 3 * 70


def test_the_line_of_an_epoch_has_the_time_left_of_the_run_until_the_last() -> None:
    rows = [{"epoch": number, "lr": 0.1, "seconds": seconds} for number, seconds in ((1, 30.0), (2, 60.0))]
    assert format_epoch(rows, 12).endswith("60.0 s, 0:07:30 left")
    assert format_epoch(rows, 2).endswith("60.0 s")


@pytest.mark.parametrize(("shown", "every"), [(True, 0.0), (False, 60.0)])
def test_no_lines_are_logged_without_an_interval_or_in_other_processes(
    clock: list[float], shown: bool, every: float
) -> None:
    lines: list[str] = []
    with bar("checking images", 10, shown=shown, log=lines.append, every=every) as advance:
        clock[0] += 1000
        advance()
    assert lines == []


def test_a_terminal_has_a_bar_with_details_and_no_lines(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_steps(auto_refresh=False) as begin:
        begin("epoch 1 of 2", 10)(4, "loss 0.5000  lr 0.001  12.0 images/s")
    shown = capsys.readouterr().err
    assert "4/10" in shown
    assert "loss 0.5000  lr 0.001  12.0 images/s" in shown
    with bar("epoch 1 of 2", 10, shown=True, log=lines.append, every=1, end=lambda end: end - 300) as advance:
        clock[0] += 100
        advance()
    assert lines == []
    assert "(run: 0:10:00)" in capsys.readouterr().err


def test_a_terminal_of_80_columns_shows_everything(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_steps(auto_refresh=False) as begin:
        begin("evaluating epoch 12 of 20", 12000)(400, "loss 0.5123  lr 0.000123  1112.0 images/s", "(run: 1:23:19)")
    shown = capsys.readouterr().err
    for text in ("evaluating epoch 12 of 20", "400/12000", "1112.0 images/s", "(run: 1:23:19)"):
        assert text in shown


def test_a_run_logs_loss_rate_and_speed_of_its_steps(tmp_path: Path) -> None:
    lines: list[str] = []
    data = coloured_folder(tmp_path / "data")
    train(small_run(data, tmp_path / "run", epochs=2, log_every=1e-6), log=lines.append)
    steps = [line for line in lines if line.startswith("epoch 1 of 2: ")]
    assert [line.split("  ")[0] for line in steps] == [f"epoch 1 of 2: {images}/30" for images in (8, 16, 24)]
    names = [[part.split()[0] for part in line.split("  ")[1:]] for line in steps]
    assert all(words[:2] == ["loss", "lr"] and len(words) == 4 for words in names)
    assert all("images/s" in line and " left (run: 0:0" in line for line in steps)
    assert any(line.startswith("evaluating epoch 1 of 2: 6/6") for line in lines)
    second = [line for line in lines if "epoch 2 of 2: " in line]
    assert len(second) == 4
    assert all(" left (run: 0:0" in line for line in second)


def test_evaluation_logs_its_data_and_the_progress_of_its_batches(tmp_path: Path) -> None:
    lines: list[str] = []
    data = coloured_folder(tmp_path / "data")
    model = registry.build("mobilenet_v1", width=0.25, num_classes=3)
    model.description = replace(model.description, classes=tuple(sorted(COLOURS)))
    evaluate(model, str(data), batch_size=4, log=lines.append, log_every=1e-6)
    assert lines[:2] == [
        "class folders: 6 validation images, 3 classes",
        "the data has no validation set: evaluating on the images held out from 36 in training; part 'all' selects "
        "all images",
    ]
    assert [line.split("  ")[0] for line in lines if line.startswith("evaluating")] == [
        "evaluating: 4/6",
        "evaluating: 6/6",
    ]
    assert any(line.startswith("checking images: 36/36") for line in lines)


@pytest.mark.parametrize(
    ("part", "line"),
    [("val", "6 validation images"), ("train", "30 training images"), ("all", "36 images")],
)
@pytest.mark.parametrize("json", [(), ("--json",)], ids=["table", "json"])
def test_the_line_about_the_data_never_mixes_with_json(
    run: Run, tmp_path: Path, part: str, line: str, json: tuple[str, ...]
) -> None:
    data = coloured_folder(tmp_path / "data")
    model = registry.build("mobilenet_v1", width=0.25, num_classes=3)
    model.description = replace(model.description, classes=tuple(sorted(COLOURS)))
    weights = registry.save(model, tmp_path / "colours.safetensors")
    ran = run("evaluate", data, "--weights", weights, "--part", part, *json)
    shown, other = (ran.err, ran.out) if json else (ran.out, ran.err)
    assert f"class folders: {line}, 3 classes" in shown.splitlines()
    assert "class folders" not in other


def test_steps_that_take_long_are_logged_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    logged, lines = Event(), []
    monkeypatch.setattr(progress, "SLOW", 0.0)

    def log(line: str) -> None:
        lines.append(line)
        logged.set()

    with progress_steps(log=log) as begin:
        for label, total in (("writing ONNX", None), ("calibrating", 40)):
            begin(label, total)
            assert logged.wait(60)
            logged.clear()
    assert lines == ["writing ONNX", "calibrating, 40 in all"]


def test_quick_steps_are_not_logged() -> None:
    lines: list[str] = []
    with progress_steps(log=lines.append) as begin:
        begin("writing ONNX", None)
        begin("calibrating", 40)(1)
    assert lines == []
    assert not [thread for thread in enumerate_threads() if isinstance(thread, Timer) and not thread.finished.is_set()]
