"""Mutate the package in a few hundred places, one at a time, and count the mutants that a test detects.

The mutation operators come from cosmic-ray. `make mutants` first runs all tests and records which test covers which
line, then runs this script. A mutant is tried against tests that cover its statement, or its module if the statement
runs at import. A trial has at most `--tests` tests and one minute, which bounds the cost of a survivor, so the reported
fraction of killed mutants is a lower bound. Each trial is a fork of a process that has imported PyTorch, in a copy of
the repository.
"""

import argparse
import ast
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from coverage import CoverageData

# `|` appears in annotations and `**` before keyword arguments. Their mutants change no behavior or are not valid
# Python.
LEFT_OUT = ("core/ReplaceBinaryOperator_BitOr", "core/ReplaceBinaryOperator_Pow")
BROKEN = 99
MINUTE = 60


@dataclass
class Mutant:
    """A place in a module, its replacement text, and the outcome of the trial.

    Outcomes: "killed" by a test, "survived", "no end" within a minute, "untested" where no test covers the module.
    """

    module: str
    line: int
    operator: str
    occurrence: int
    outcome: str = ""
    killer: str = ""


def sample(root: Path, folders: Iterable[str], count: int, seed: int) -> list[Mutant]:
    """Return a random sample of mutants that compile, at most one for each place."""
    with tempfile.TemporaryDirectory() as folder, use_db(f"{folder}/work.sqlite", WorkDB.Mode.create) as work:
        init([path for name in folders for path in sorted((root / name).rglob("*.py"))], work, {})
        mutations = [mutation for item in work.work_items for mutation in item.mutations]
    places: dict[tuple[str, tuple[int, int]], list[Mutant]] = {}
    for mutation in mutations:
        if not mutation.operator_name.startswith(LEFT_OUT):
            module = str(Path(mutation.module_path).relative_to(root))
            mutant = Mutant(module, mutation.start_pos[0], mutation.operator_name, mutation.occurrence)
            places.setdefault((module, tuple(mutation.start_pos)), []).append(mutant)
    chance, mutants = random.Random(seed), []
    for place in chance.sample(sorted(places), len(places)):
        mutant = chance.choice(sorted(places[place], key=lambda mutant: (mutant.operator, mutant.occurrence)))
        with contextlib.suppress(SyntaxError):
            compile(mutated(root, mutant), mutant.module, "exec")
            mutants.append(mutant)
        if len(mutants) == count:
            break
    return mutants


def mutated(root: Path, mutant: Mutant) -> str:
    """Return the source of the mutant's module with the mutation applied."""
    code = mutate_code((root / mutant.module).read_text(), get_operator(mutant.operator)(), mutant.occurrence)
    assert code is not None, mutant
    return str(code)


def recorded_seconds(junit: Path) -> dict[str, float]:
    """Return the seconds of each test. The key is the file's stem with pytest's name of the test."""
    cases = [case.attrib for case in ElementTree.parse(junit).iter("testcase")]
    return {f"{case['classname'].rpartition('.')[2]}::{case['name']}": float(case["time"]) for case in cases}


class Selection:
    """The tests to try on a mutant, from the coverage contexts and times of one run."""

    def __init__(self, root: Path, coverage: Path, junit: Path, most: int, tables: str) -> None:
        self.root, self.most, self.tables = root, most, tables
        self.data = CoverageData(str(coverage))
        self.data.read()
        self.seconds = recorded_seconds(junit)

    def tests(self, mutant: Mutant) -> list[str]:
        """Return the names of the tests: the fastest case of each test function, then the second fastest, and so on."""
        file = next((name for name in self.data.measured_files() if name.endswith(f"/{mutant.module}")), None)
        contexts = self.data.contexts_by_lineno(file) if file else {}
        line = first_line(self.root / mutant.module, mutant.line)
        covering = names(contexts.get(line, ())) or names(one for every in contexts.values() for one in every)
        everything = covering or {test for test in names(self.data.measured_contexts()) if test.startswith(self.tables)}
        turns: Counter[str] = Counter()
        ranked = []
        for test in sorted(everything, key=lambda test: (self._seconds(test), test)):
            function = test.partition("[")[0]
            turns[function] += 1
            ranked.append((turns[function], self._seconds(test), test))
        return [test for _, _, test in sorted(ranked)[: self.most]]

    def _seconds(self, test: str) -> float:
        file, _, name = test.partition("::")
        return self.seconds.get(f"{Path(file).stem}::{name}", 1.0)


def names(contexts: Iterable[str]) -> set[str]:
    return {context.rpartition("|")[0] for context in contexts if "::" in context}


def first_line(path: Path, line: int) -> int:
    """Return the first line of the statement that contains a line. Coverage records that first line."""
    statements = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.stmt)]
    inside = [node.lineno for node in statements if node.lineno <= line <= (node.end_lineno or node.lineno)]
    return max(inside, default=line)


def run(mutants: list[Mutant], selection: Selection) -> Iterator[Mutant]:
    """Try mutants one after another in a copy of the repository, and yield each with its outcome."""
    import timm  # noqa: F401 - what every trial would import
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "featuretap")
        ignored = shutil.ignore_patterns(".venv", ".git", "*_cache", "*.egg-info")
        shutil.copytree(selection.root, copy, ignore=ignored, symlinks=True)
        for mutant in mutants:
            tests, path = selection.tests(mutant), copy / mutant.module
            source = path.read_text()
            path.write_text(mutated(selection.root, mutant))
            mutant.outcome, mutant.killer = outcome(copy, tests) if tests else ("untested", "")
            path.write_text(source)
            yield mutant


def outcome(copy: Path, tests: list[str]) -> tuple[str, str]:
    """Run tests in a new process until one fails."""
    report = copy / "report.json"
    report.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        # The child must never continue with the parent's code.
        status = BROKEN
        try:
            status = trial(copy, tests, report)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + MINUTE
    while not (waited := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "no end", ""
        time.sleep(0.05)
    status = os.waitstatus_to_exitcode(waited[1])
    assert status not in (BROKEN, pytest.ExitCode.NO_TESTS_COLLECTED), (copy / "output.txt").read_text()
    killer = json.loads(report.read_text()) if report.exists() else "tests cannot be collected"
    return ("killed", killer) if status else ("survived", "")


def trial(copy: Path, tests: list[str], report: Path) -> int:
    os.setsid()
    os.chdir(copy)
    for descriptor in (1, 2):
        os.dup2(os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    # Import the package from the copy, here and in the processes that tests start. The script's own folder is dropped
    # from the path.
    sys.path[0] = str(copy.parent)
    os.environ |= {"PYTHONPATH": str(copy.parent), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    sys.dont_write_bytecode = True

    class FirstFailure:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed and not path.exists():
                path.write_text(json.dumps(report.nodeid))

    path = report
    rewritten = "ignore::pytest.PytestAssertRewriteWarning"
    arguments = ["-W", rewritten, "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={copy}", *tests]
    return int(pytest.main(arguments, plugins=[FirstFailure()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", default=["registry", "backbones"])
    parser.add_argument("--coverage", type=Path, default=Path(".coverage"))
    parser.add_argument("--junit", type=Path, default=Path("junit.xml"))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", type=int, default=60)
    parser.add_argument(
        "--tables",
        default="tests/backbones/",
        help="tests of modules whose statements all run at import, as tables do: no test covers those by itself",
    )
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), metavar=("K", "N"), help="every Nth mutant from the Kth"
    )
    options = parser.parse_args()
    root = Path(subprocess.check_output(["git", "rev-parse", "--show-toplevel"], text=True).strip())
    first, step = options.part
    mutants = sample(root, options.folders, options.count, options.seed)[first::step]
    selection = Selection(root, options.coverage, options.junit, options.tests, options.tables)
    counts: Counter[tuple[str, str]] = Counter()
    with options.out.open("w") as out:
        for mutant in run(mutants, selection):
            out.write(json.dumps(asdict(mutant)) + "\n")
            out.flush()
            counts[mutant.module.partition("/")[0], mutant.outcome] += 1
    for (folder, result), number in sorted(counts.items()):
        print(f"{folder}: {number} {result}")


if __name__ == "__main__":
    main()
