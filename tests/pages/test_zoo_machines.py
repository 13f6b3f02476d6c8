"""Latencies of named machines: how a file is written, and which files are rejected."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import latency
from docs.builder.zoo_machines import MACHINES, read_machines
from featuretap.registry import Registry


def result(median: float, size: int = 224) -> dict[str, Any]:
    """Return the output of `featuretap bench --json` for one network."""
    measured = {
        "name": "mobilenet_v1",
        "by": "eager",
        "size": [size, size],
        "batch": 1,
        "median": median / 1000,
        "quartiles": [(median - 1) / 1000, (median + 1) / 1000],
    }
    machine = {"processor": "Imaginary", "cores": 4, "threads": 2, "versions": {"torch": "2.14"}}
    return {"machine": machine, "rounds": 30, "measurements": [measured]}


def write_results(folder: Path, *results: dict[str, Any]) -> list[str]:
    paths = [folder / f"{number}.json" for number in range(len(results))]
    for path, one in zip(paths, results, strict=True):
        path.write_text(json.dumps(one))
    return list(map(str, paths))


def test_the_committed_files_have_every_backbone_of_the_catalogue() -> None:
    machines = read_machines()
    assert machines
    for machine in machines.values():
        assert set(machine.milliseconds) == set(Registry(discover=False).list_backbones())
        assert machine.note
        assert {len(times) for times in machine.milliseconds.values()} == {len(machine.runtimes)}
    assert {latency.file_name(machine.machine) for machine in machines.values()} == set(machines)
    assert MACHINES == latency.MACHINES


def test_the_lowest_median_of_several_results_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "MACHINES", tmp_path / "machines")
    (tmp_path / "machines").mkdir()
    paths = write_results(tmp_path, result(20.0), result(12.3456), result(15.0))
    latency.main(["Imaginary, 4 cores", "--note", "Quiet.", "--results", *paths])
    assert capsys.readouterr().out == f"wrote: {tmp_path / 'machines' / 'imaginary-4-cores.json'}\n"
    (machine,) = read_machines(tmp_path / "machines").values()
    assert machine.milliseconds == {"mobilenet_v1": {"eager": (11.346, 12.346, 13.346)}}
    assert (machine.machine, machine.note, machine.runs, machine.rounds) == ("Imaginary, 4 cores", "Quiet.", 3, 30)
    assert machine.label("eager") == "Imaginary, 4 cores: PyTorch, 2 threads"


def test_results_of_several_sizes_are_refused(tmp_path: Path) -> None:
    paths = write_results(tmp_path, result(20.0), result(20.0, size=320))
    with pytest.raises(SystemExit, match=r"^the results are for several sizes or batch sizes; give one of each$"):
        latency.main(["x", "--results", *paths])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema": 2}, "does not have schema 1; write it with python -m benchmarks.latency"),
        ({"speed": 1}, "has unknown or missing fields: speed; write it with python -m benchmarks.latency"),
        ({"date": None}, "has unknown or missing fields: date; write it with python -m benchmarks.latency"),
    ],
)
def test_a_file_with_other_fields_is_refused(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    entry = {**latency.entry_of("Imaginary", "", [result(20.0)]), **change}
    kept = {key: value for key, value in entry.items() if value is not None}
    (tmp_path / "imaginary.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=f"imaginary.json {problem}$"):
        read_machines(tmp_path)
