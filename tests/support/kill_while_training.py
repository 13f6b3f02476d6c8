"""Kill training runs at every write to disk and at random moments, resume them, and compare the results.

`kill_loops/test_kills.py` runs this script. Arguments: a folder, and the minimum number of processes to kill. Prints as
JSON the number of killed processes, the number of those killed in the middle of a write, the runs whose last weights or
scores differ from those of an uninterrupted run, and the number of different validation losses in the uninterrupted
run, which has one for each epoch.
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
    # Drawing would take most of the time. The pictures are replaced by a few bytes, which no test compares.
    Figure.savefig = lambda self, file, **options: file.write(b"a picture")
    data = coloured_folder(folder / "data", count=8)
    # Import the modules of a run before forking, so that forks do not import them again.
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
    """Kill a run once, resume it to its end, and compare the results."""
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
    """Return the history without times."""
    return [line.split(",")[:-2] for line in (out / "history.csv").read_text().splitlines()]


def finish(data: Path, out: Path) -> None:
    _, status = os.waitpid(started(data, out, None), 0)
    assert status == 0


def started(data: Path, out: Path, prepare: Callable[[], None] | None) -> int:
    """Fork a process that starts or resumes a run, and return its process id."""
    child = os.fork()
    if child:
        return child
    # The child must never continue with the parent's code.
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
