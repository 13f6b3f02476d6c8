"""Train and run commands in each process of torchrun. `test_training_distributed.py` runs this script.

Arguments: the data folder, the results folder, the settings of a run as JSON, and the commands as JSON (name →
arguments). Each process imports torch once and forks a process for each step. The first step trains, and writes as JSON
which images it read for training and for validation, in order. The other steps are the commands. Each step writes its
standard output and error to separate files.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from support.training_runs import small_run
from torch.distributed import PrefixStore

from featuretap import command_line
from featuretap.workflows.training import loop
from featuretap.workflows.training.run import train

SEEN: dict[str, list[str]] = {"train": [], "val": []}


def recorded(read: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    """Wrap `read` to record the images it reads, separately for training and validation."""
    parts: list[Any] = []

    def noting(prepared: Any, index: int) -> Any:
        # Training images are read first.
        if not any(prepared.samples is part for part in parts):
            parts.append(prepared.samples)
        SEEN["train" if prepared.samples is parts[0] else "val"].append(prepared.samples[index].name)
        return read(prepared, index)

    return noting


def train_and_record(data: str, out: Path, settings: dict[str, Any], path: Path) -> None:
    loop.TransformedSamples.__getitem__ = recorded(loop.TransformedSamples.__getitem__)  # type: ignore[method-assign]
    result = train(small_run(data, out, **settings), log=lambda line: None)
    told = {
        "scores": dict(result.metrics.scores),
        "counts": [score.occurrences for score in result.metrics.per_class],
        "leads": result.is_main,
        "seen": SEEN,
    }
    path.write_text(json.dumps(told))


def separate_rendezvous(name: str) -> None:
    """Prefix the keys in torchrun's store with a name.

    Otherwise the processes of a step read the addresses of the previous step's processes, which are still in the store.
    """
    # torch.distributed also has a function named `rendezvous`, which hides the module.
    rendezvous: Any = import_module("torch.distributed.rendezvous")
    create = rendezvous._create_c10d_store
    rendezvous._create_c10d_store = lambda *given, **more: PrefixStore(name, create(*given, **more))


def status_of(step: Callable[[], object], printed: Path) -> int:
    """Run a step in a forked process that writes to `printed`.out and `printed`.err, and return its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # The child must never continue with the parent's code.
    status = 99
    try:
        for descriptor, stream in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{printed}.{stream}", os.O_WRONLY | os.O_CREAT), descriptor)
        separate_rendezvous(printed.name.rpartition("-")[0])
        step()
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main(data: str, folder: Path, settings: dict[str, Any], commands: dict[str, list[str]]) -> None:
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    training = partial(train_and_record, data, folder / "run", settings, folder / f"seen-{rank}.json")
    steps = {"seen": training} | {name: partial(command_line.main, line) for name, line in commands.items()}
    statuses = {name: status_of(step, folder / f"{name}-{rank}") for name, step in steps.items()}
    (folder / f"statuses-{rank}.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *json.loads(sys.argv[3]))
