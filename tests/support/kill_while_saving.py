"""Kill processes that alternately save two models to the same file. `kill_loops/test_kills.py` runs this script.

Arguments: a folder, and the number of processes to kill. Every fifth process is killed while it syncs a file or folder,
the others at random moments.

Prints as JSON how many processes were killed, how often the file contained each model, how often it contained neither,
and how many temporary files were left by kills in the middle of a write.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from support.kill_points import kill_at_sync
from torch import nn

from featuretap.registry import Registry

SYNCS = 4
"""Calls of `os.fsync` while two models are saved."""


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    registry = Registry(discover=False)
    models = [registry.build("mobilenet_v2_050", features_only=True, taps=("C3",)) for _ in "AB"]
    contents = [registry.save(model, folder / "whole.safetensors").read_bytes() for model in models]
    (folder / "whole.safetensors").unlink()
    target = folder / "target.safetensors"
    began = time.perf_counter()
    for model in [*models, *models]:
        registry.save(model, target)
    # The four saves here take as long as about two saves in a new process, which has to copy the memory that it writes
    # to.
    duration = time.perf_counter() - began
    moments = random.Random(0)
    seen = {"A": 0, "B": 0, "neither": 0, "left": 0, "killed": 0}
    for kill in range(kills):
        order = models if kill % 2 else models[::-1]
        if kill % 5:
            child = saving(registry, itertools.cycle(order), target)
            time.sleep(moments.uniform(0, duration))
            os.kill(child, signal.SIGKILL)
        else:
            # Both models' files occur after these kills, and half of the kills leave a temporary file.
            child = saving(registry, order, target, sync=kill // 5 % SYNCS + 1)
        _, status = os.waitpid(child, 0)
        seen["killed"] += os.WIFSIGNALED(status)
        content = target.read_bytes()
        seen["AB"[contents.index(content)] if content in contents else "neither"] += 1
        left = [path for path in folder.iterdir() if path != target]
        seen["left"] += len(left)
        for path in left:
            path.unlink()
    print(json.dumps(seen))


def saving(registry: Registry, models: Iterable[nn.Module], target: Path, sync: int | None = None) -> int:
    """Fork a process that saves the models one after another, and return its process id.

    Args:
        registry: the registry that saves.
        models: the models, in this order.
        target: the file that all models are saved to.
        sync: the number of the `os.fsync` call at which the process kills itself, or None.
    """
    child = os.fork()
    if child:
        return child
    # The child must never continue with the parent's code.
    try:
        if sync is not None:
            kill_at_sync(sync)
        for model in models:
            registry.save(model, target)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
