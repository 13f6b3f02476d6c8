"""Latency of every MobileNet on one machine, as `featuretap bench` measures it, for the zoo page.

    python -m benchmarks.latency "Raspberry Pi 5, 4 cores" --threads 4

writes `benchmarks/machines/raspberry-pi-5-4-cores.json`. `docs/builder/zoo_machines.py` reads the files of this folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featuretap.registry import Registry
from featuretap.support.processor import vector_units

MACHINES = Path(__file__).parent / "machines"

SCHEMA = 1

RUNTIMES = ("onnxruntime", "eager")


def main(arguments: list[str] | None = None) -> None:
    """Measure this machine, or read results of `featuretap bench --json`, and write the machine's file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("machine", help="name of the machine, such as 'Raspberry Pi 5, 4 cores'")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help="separated by commas")
    parser.add_argument("--note", default="", help="how it was measured, for readers of the zoo page")
    parser.add_argument(
        "--results", type=Path, nargs="+", help="use these results of `featuretap bench --json` made on this machine"
    )
    given = parser.parse_args(arguments)
    if given.results:
        results = [json.loads(path.read_text()) for path in given.results]
    else:
        results = [measure(given.runtimes, given.threads, given.rounds)]
    path = MACHINES / f"{file_name(given.machine)}.json"
    text = json.dumps(entry_of(given.machine, given.note, results), indent=1, ensure_ascii=False)
    # A line for each network and runtime.
    path.write_text(re.sub(r"\[[^\[\]]*\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text) + "\n")
    print(f"wrote: {path}")


def measure(runtimes: str, threads: int, rounds: int) -> dict[str, Any]:
    """Return what `featuretap bench --json` prints for every backbone of the catalogue."""
    command = [sys.executable, "-m", "featuretap.command_line", "bench", *Registry(discover=False).list_backbones()]
    command += ["--runtime", runtimes, "--threads", str(threads), "--rounds", str(rounds), "--json"]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(ran.stdout)
    return result


def entry_of(machine: str, note: str, results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of a machine's file; of several results, each network's lowest median counts.

    Args:
        machine: name of the machine.
        note: how it was measured.
        results: what `featuretap bench --json` printed on it, one setting each.

    Returns:
        The content as JSON values.
    """
    results = list(results)
    first = results[0]
    setting = first["measurements"][0]
    milliseconds: dict[str, dict[str, list[float]]] = {}
    for measured in (each for result in results for each in result["measurements"]):
        if (measured["size"], measured["batch"]) != (setting["size"], setting["batch"]):
            raise SystemExit("the results are for several sizes or batch sizes; give one of each")
        low, high = measured["quartiles"]
        times = [round(seconds * 1000, 3) for seconds in (low, measured["median"], high)]
        of_network = milliseconds.setdefault(measured["name"], {})
        of_network[measured["by"]] = min(of_network.get(measured["by"], times), times, key=lambda three: three[1])
    about = first["machine"]
    return {
        "schema": SCHEMA,
        "machine": machine,
        "note": note,
        "date": datetime.now(UTC).date().isoformat(),
        "processor": about["processor"],
        "vector_units": list(vector_units() or ()),
        "system": f"{platform.system()}, {platform.machine()}",
        "cores": about["cores"],
        "threads": about["threads"],
        "versions": about["versions"],
        "size": setting["size"],
        "batch": setting["batch"],
        "rounds": first["rounds"],
        "runs": len(results),
        "milliseconds": milliseconds,
    }


def file_name(machine: str) -> str:
    """Return the name of a machine's file, without its ending.

    Args:
        machine: name of the machine.

    Returns:
        The name.
    """
    return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")


if __name__ == "__main__":
    main()
