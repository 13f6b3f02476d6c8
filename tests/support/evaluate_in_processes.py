"""Train and judge under torchrun, and leave what each process saw; run by test_training_distributed.py.

Arguments: the folder of the data, the folder of the run, and JSON of settings. Each process writes which images it has
read to learn from and to judge by, in order, as JSON into the folder of the run's parent.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from featuretap.training import loaders
from featuretap.training.run import train
from support.training_runs import small_run

SEEN: dict[str, list[str]] = {"train": [], "val": []}


def recorded(read: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    """Return reading that notes what is read, by the part that it is of."""
    parts: list[Any] = []

    def noting(prepared: Any, index: int) -> Any:
        # The part to learn from is read first.
        if not any(prepared.samples is part for part in parts):
            parts.append(prepared.samples)
        SEEN["train" if prepared.samples is parts[0] else "val"].append(prepared.samples.name(index))
        return read(prepared, index)

    return noting


def main(data: str, out: Path, settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    loaders._Prepared.__getitem__ = recorded(loaders._Prepared.__getitem__)  # type: ignore[method-assign]
    result = train(small_run(data, out, **settings), say=lambda line: None)
    rank = os.environ.get("RANK", "0")
    judged = {
        "scores": dict(result.judgement.scores),
        "counts": [score.occurrences for score in result.judgement.per_class],
        "leads": result.leads,
        "seen": SEEN,
    }
    out.with_name(f"{out.name}-{rank}.json").write_text(json.dumps(judged))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
