"""Processes killed at every write and at random moments: files stay intact, and training resumes to the same result."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import TESTS

KILLS = int(os.environ.get("FEATURETAP_KILLS", "20"))


def results_of(program: str, folder: Path) -> dict[str, Any]:
    """Run a kill loop of tests/support and return its counts."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", f"support.{program}", str(folder), str(KILLS)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=TESTS)
    assert ran.returncode == 0, ran.stderr
    results: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return results


def test_a_file_is_the_old_or_the_new_one_whenever_saving_is_killed(tmp_path: Path) -> None:
    results = results_of("kill_while_saving", tmp_path)
    assert (results["killed"], results["neither"], results["A"] + results["B"]) == (KILLS, 0, KILLS)
    # Check that enough kills came neither too early, too late nor between two files.
    assert min(results["A"], results["B"]) >= KILLS / 20
    assert results["left"] >= KILLS / 40


def test_a_training_run_killed_at_any_moment_resumes_to_the_same_weights(tmp_path: Path) -> None:
    results = results_of("kill_while_training", tmp_path)
    assert results["other"] == []
    # Check that the run learns something. Otherwise lost progress would not change the result.
    assert results["losses"] == 2
    # The configuration, and for each of two epochs the last weights, history, state and maybe the best weights. Each
    # write syncs a file and its folder.
    assert results["writes"] >= 16
    assert results["killed"] >= results["writes"]
    assert results["left"] >= 5
