"""Kill runs of training at every write to the disk and at random moments, let them go on, and compare what comes out.

Run by kill_loops/test_kills.py. Arguments: a folder, and how many processes to kill at least. Prints in JSON how many
processes were killed, how many of them in the middle of a write, and the runs whose last weights, or whose scores, are
not those of the run that nobody killed.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from featuretap.training.run import train
from featuretap.training.run_folder import CONFIGURATION, LAST, continued
from support.training_runs import coloured_folder, small_run


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    os.environ["FEATURETAP_OFFLINE"] = "1"
    data = coloured_folder(folder / "data")
    began = time.perf_counter()
    whole = folder / "whole"
    finish(data, whole)
    duration = time.perf_counter() - began
    writes = len((folder / "writes").read_text())
    seen: dict[str, Any] = {"killed": 0, "left": 0, "writes": writes, "other": []}
    for number in range(1, writes + 1):
        check(folder, whole, data, f"write {number}", seen, lambda number=number: kill_at_write(number))
    moments = random.Random(0)
    for number in range(max(kills - writes, 4)):
        delay = moments.uniform(0.3, 1.0) * duration
        check(folder, whole, data, f"moment {number}", seen, None, delay)
    print(json.dumps(seen))


def check(
    folder: Path,
    whole: Path,
    data: Path,
    name: str,
    seen: dict[str, Any],
    prepare: Callable[[], None] | None,
    delay: float = 0.0,
) -> None:
    """Kill a run once, let it go on to its end, and compare."""
    out = folder / name
    child = started(data, out, prepare)
    if prepare is None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    seen["killed"] += os.WIFSIGNALED(status)
    seen["left"] += len(list(out.glob(".*.tmp")))
    finish(data, out)
    if (out / LAST).read_bytes() != (whole / LAST).read_bytes() or scores(out) != scores(whole):
        seen["other"].append(name)


def scores(out: Path) -> list[list[str]]:
    """Return the history without what the clock says."""
    return [line.split(",")[:-2] for line in (out / "history.csv").read_text().splitlines()]


def finish(data: Path, out: Path) -> None:
    _, status = os.waitpid(started(data, out, None), 0)
    assert status == 0


def started(data: Path, out: Path, prepare: Callable[[], None] | None) -> int:
    """Fork a process that begins a run or goes on with it, and return its id."""
    child = os.fork()
    if child:
        return child
    # Whatever happens, a child must not go on as its parent.
    status = 1
    try:
        (prepare or count_writes(out.parent / "writes"))()
        resume = (out / CONFIGURATION).exists()
        configuration = continued(out, {}) if resume else small_run(data, out, epochs=2, ema=0.9)
        train(configuration, resume=resume, say=lambda line: None)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def count_writes(path: Path) -> Callable[[], None]:
    """Leave a file with a letter for each time that something is made sure to be on the disk."""

    def prepare() -> None:
        path.unlink(missing_ok=True)
        sync = os.fsync

        def counted(descriptor: int) -> None:
            sync(descriptor)
            with path.open("a") as file:
                file.write("x")

        os.fsync = counted

    return prepare


def kill_at_write(number: int) -> None:
    """Let this process die when it makes sure for the n-th time that something is on the disk."""
    left = [number]
    sync = os.fsync

    def dying(descriptor: int) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = dying


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
