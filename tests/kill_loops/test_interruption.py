"""Ctrl-C and SIGTERM during a command: no file is half-written, and one line describes the result.

Each command runs in a new process. It is interrupted when a file is on disk but not yet in place, at a sync of the
temporary file or at its rename.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

import featuretap
from featuretap.command_line import main
from featuretap.weights.reading import read_checkpoint

PROGRAM = """
import json, multiprocessing.util, os, pathlib, shutil, signal, sys
import onnxruntime, onnxscript, torch
import featuretap.workflows.extraction.running, featuretap.workflows.training.run
from featuretap.command_line import main


def interrupt_at(moment, number, place):
    # What is interrupted lives in a session of its own, so that a whole group can be, as by a terminal.
    os.setsid()
    owner, name = (pathlib.Path, moment) if moment == "write_text" else (os, moment)
    real, left = getattr(owner, name), [place]

    def interrupting(*arguments, **more):
        done = real(*arguments, **more)
        left[0] -= 1
        if not left[0]:
            there = sorted(str(path) for path in pathlib.Path().rglob(".featuretap-*"))
            pathlib.Path("there.json").write_bytes(json.dumps(there).encode())
            os.killpg(0, number)
        return done

    setattr(owner, name, interrupting)


def run(case, path):
    if not case["moment"]:
        # What goes on does so in a copy of what an interruption has left.
        shutil.copytree(path.with_suffix(""), path)
    os.chdir(path)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"../{path.name}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
    if case["moment"]:
        interrupt_at(case["moment"], case["number"], case["place"])
    main(case["arguments"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Whoever runs the tests in the background ignores Ctrl-C, and what he starts would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    statuses = {}
    for name, case in json.load(sys.stdin).items():
        child = os.fork()
        if not child:
            # Whatever happens, a child must not go on as its parent.
            status = 99
            try:
                run(case, pathlib.Path(sys.argv[1], name))
            except SystemExit as error:
                status = error.code or 0
            finally:
                # As at the end of any other process. Otherwise threads that still hold semaphores make Python's
                # resource tracker report leaks, now and then.
                multiprocessing.util._exit_function()
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(status)
        statuses[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(statuses))
"""
BEFORE = b"what was there before"
NOTHING = "featuretap: interrupted; nothing was written\n"
REMOVED = re.compile(
    r".* There appear to be 1 leaked semaphore .*\n.*\n"
    r".* resource_tracker: '/mp-\w+': \[Errno 2\] No such file .*\n.*\n"
)
"""Python's warning about a semaphore that no longer exists: the interruption came after `sem_unlink` in
`multiprocessing.synchronize.SemLock._cleanup`, and before the resource tracker was notified."""
BARE = ("mobilenet_v1_025", "--weights", "none")


class Case(NamedTuple):
    """A command line, the point at which it is interrupted, and its expected message."""

    line: str
    says: str = NOTHING
    moment: str = "fsync"
    place: int = 1
    number: int = signal.SIGINT


class Seen(NamedTuple):
    """The state after an interrupted command."""

    folder: Path
    status: int
    out: str
    err: str
    there: list[str]


RUN = "train images --backbone mobilenet_v1_025 --epochs 2 --size 32 --batch-size 4 --out run --val-fraction 0.5"
FEATURES = "extract images --model mobilenet_v1_025 --weights none --pool --shard-size 4 --batch-size 2 --out features"
GOES_ON = "featuretap: interrupted; repeat the command to resume\n"
RESUMES = "featuretap: interrupted; resume from the last complete epoch with: featuretap train --resume run\n"

CASES = {
    "save": Case("save mobilenet_v1_025 target.safetensors --weights none"),
    "save-terminated": Case("save mobilenet_v1_025 target.safetensors --weights none", number=signal.SIGTERM),
    "save-folder": Case("save mobilenet_v1_025 new --weights none"),
    "convert": Case("convert source.safetensors target.safetensors"),
    "export": Case("export source.safetensors target.onnx --taps C1"),
    "quantize": Case("quantize source.safetensors target.onnx --images images --taps C1 --size 32"),
    "taps": Case("taps images/a/0.png --model mobilenet_v1_025 --weights none --out target.png"),
    "predict": Case("predict images/a/0.png --weights source.safetensors --out drawn", "featuretap: interrupted\n"),
    "new-plugin": Case("new-plugin featuretap-made", moment="write_text", place=4),
    "extract": Case(FEATURES, GOES_ON, place=3),
    "extract-session": Case(FEATURES.replace("none", "source.safetensors"), GOES_ON, place=3),
    "extract-workers": Case(f"{FEATURES} --workers 2", GOES_ON, place=3),
    "train": Case(f"{RUN} --workers 0", RESUMES, place=3),
    "train-workers": Case(f"{RUN} --workers 2", RESUMES, place=3),
}
WHOLE = {
    "save-at-its-end": Case(
        "save mobilenet_v1_025 target.safetensors --weights none", "featuretap: interrupted\n", place=2
    ),
    "save-between-two-files": Case(
        "save mobilenet_v1_025 both --weights none", "featuretap: interrupted\n", moment="replace"
    ),
}
"""Commands that are interrupted once their files are in place."""
GOING_ON = {
    "extract.on": Case(FEATURES, moment=""),
    "train.on": Case("train --resume run", moment=""),
}
"""What is done afterwards with what an interrupted command has left."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """Run every case in a separate folder, forked from one process that has imported torch."""
    root = tmp_path_factory.mktemp("interrupted")
    model = featuretap.registry.build("mobilenet_v1_025", num_classes=2)
    for name in CASES | WHOLE:
        folder = root / name
        for label, shade in (("a", 40), ("b", 200)):
            (folder / "images" / label).mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (40, 32), (shade, number, 0)).save(folder / "images" / label / f"{number}.png")
        featuretap.registry.save(model, folder / "source.safetensors")
        (folder / "drawn").mkdir()
        (folder / "both").mkdir()
        for target in ("target.safetensors", "target.onnx", "target.png", "drawn/0.png"):
            (folder / target).write_bytes(BEFORE)
    # Python 3.12 warns about forks of multi-threaded processes, including those of PyTorch's data loaders.
    warnings = "default,ignore:This process:DeprecationWarning"
    environment = {**os.environ, "FEATURETAP_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": warnings}
    told = {
        name: {**case._asdict(), "arguments": case.line.split()} for name, case in (CASES | WHOLE | GOING_ON).items()
    }
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root)],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        env=environment,
    )
    assert ran.returncode == 0, ran.stderr
    statuses: dict[str, int] = json.loads(ran.stdout)
    return {name: _seen(root, name, status) for name, status in statuses.items()}


def _seen(root: Path, name: str, status: int) -> Seen:
    said: list[Any] = [REMOVED.sub("", (root / f"{name}.{stream}").read_text()) for stream in ("out", "err")]
    moment = root / name / "there.json"
    there = json.loads(moment.read_text()) if moment.exists() else []
    moment.unlink(missing_ok=True)
    return Seen(root / name, status, *said, there)


@pytest.mark.parametrize("name", CASES)
def test_an_interrupted_command_says_one_line_and_what_is_true(seen: dict[str, Seen], name: str) -> None:
    case, left = CASES[name], seen[name]
    assert left.there, f"it was not in the middle: {left.err}"
    assert left.err.replace("run/", "run") == case.says
    assert left.status == {signal.SIGINT: 130, signal.SIGTERM: 143}[signal.Signals(case.number)]


@pytest.mark.parametrize("name", CASES)
def test_an_interrupted_command_leaves_nothing_half_written(seen: dict[str, Seen], name: str) -> None:
    folder = seen[name].folder
    assert list(folder.rglob(".featuretap-*")) == []
    for target in ("target.safetensors", "target.onnx", "target.png", "drawn/0.png"):
        assert (folder / target).read_bytes() == BEFORE, target
    runs = {"run"} if name.startswith("train") else {"features"} if name.startswith("extract") else set()
    usual = {"images", "drawn", "both", "source.safetensors", "target.safetensors", "target.onnx", "target.png"}
    assert {path.name for path in folder.iterdir()} == usual | runs


@pytest.mark.parametrize("name", WHOLE)
def test_who_interrupts_when_all_is_in_place_finds_it_whole(seen: dict[str, Seen], name: str) -> None:
    left = seen[name]
    assert (left.status, left.err) == (130, WHOLE[name].says)
    assert list(left.folder.rglob(".featuretap-*")) == []
    if name == "save-at-its-end":
        assert read_checkpoint(left.folder / "target.safetensors").tensors
    else:
        assert {path.name for path in (left.folder / "both").iterdir()} == {"model.safetensors", "config.json"}


@pytest.mark.parametrize("name", GOING_ON)
def test_what_was_interrupted_goes_on_as_the_line_says(seen: dict[str, Seen], name: str) -> None:
    assert (seen[name].status, seen[name].err) == (0, "")
    whole = {"extract": "features/features-00003-of-00004.safetensors", "train": "run/best.safetensors"}
    assert (seen[name].folder / whole[name.partition(".")[0]]).exists()


@pytest.mark.parametrize("target", ["there/dangling", "there", "n" * 300 + ".safetensors"])
def test_targets_that_cannot_be_looked_at_are_for_the_command_to_say(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "dangling").symlink_to("nowhere")
    with pytest.raises(SystemExit) as ended:
        main(["save", *BARE, target])
    assert ended.value.code in (0, 2)
    printed = capsys.readouterr()
    assert (ended.value.code == 0) == printed.out.startswith("saved: ")
    assert len(printed.err.splitlines()) == (ended.value.code == 2)
