"""Kill runs of training at every write to the disk and at random moments, let them go on, and compare what comes out.

Run by kill_loops/test_kills.py. Arguments: a folder, and how many processes to kill at least. Prints in JSON how many
processes were killed, how many of them in the middle of a write, the runs whose last weights, or whose scores, are not
those of the run that nobody killed, and the number of different validation losses in that run, one for each epoch.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from support.kill_points import count_syncs, kill_at_sync
from support.training_runs import coloured_folder, small_run

from featuretap.workflows.training.run import train
from featuretap.workflows.training.run_folder import CONFIGURATION, LAST, read_run

LOSS = 3
"""The column of history.csv with the validation loss."""


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    os.environ["FEATURETAP_OFFLINE"] = "1"
    # Drawing would take most of the time. Pictures are still written, but as a few bytes, and nothing compares them.
    Figure.savefig = lambda self, file, **options: file.write(b"a picture")
    data = coloured_folder(folder / "data", count=8)
    # What a run imports is in memory when the others are forked.
    train(small_run(data, folder / "first", epochs=1), log=lambda line: None)
    began = time.perf_counter()
    whole = folder / "whole"
    finish(data, whole)
    duration = time.perf_counter() - began
    writes = len((folder / "writes").read_text())
    losses = {row[LOSS] for row in scores(whole)[1:]}
    seen: dict[str, Any] = {"killed": 0, "left": 0, "writes": writes, "losses": len(losses), "other": []}
    for number in range(1, writes + 1):
        check(folder, whole, data, f"write {number}", seen, partial(kill_at_sync, number))
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
        (prepare or partial(count_syncs, out.parent / "writes"))()
        resume = (out / CONFIGURATION).exists()
        configuration = read_run(out, {}) if resume else small_run(data, out, epochs=2, ema=0.9)
        train(configuration, resume=resume, log=lambda line: None)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
