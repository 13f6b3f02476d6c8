"""`featuretap doctor`: its output, JSON and exit status in working and broken installations."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Completed
from support.distributions import CULPRITS, GOOD, write_installed, write_metadata
from support.package import PROJECT

import featuretap
from featuretap.support import processor
from featuretap.workflows.measuring import installation
from featuretap.workflows.measuring.installation import (
    EXTRAS,
    LEFT_OUT,
    REQUIRED,
    Folder,
    Package,
    RuntimeTime,
    examine_installation,
)

HEADINGS = [
    "Versions",
    "Processor",
    "Speed of mobilenet_v3_large, 224×224 pixels, 1 image",
    "Plugins",
    "Weights on this machine",
    "Folders",
    "Environment variables",
]

KEYS = {
    "schema",
    "featuretap",
    "python",
    "system",
    "packages",
    "processor",
    "vector_units",
    "cores",
    "threads",
    "gpus",
    "cuda",
    "runtimes",
    "plugins",
    "weights",
    "folders",
    "environment",
    "problems",
    "backbone",
    "fastest",
}

ABSENT = """
import importlib.machinery, importlib.metadata

ABSENT = {absent!r}
find_spec = importlib.machinery.PathFinder.find_spec
find = importlib.metadata.MetadataPathFinder.find_distributions

def find_present_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in ABSENT else find_spec(name, path, target)

def find_present_distributions(context=importlib.metadata.DistributionFinder.Context()):
    return (each for each in find(context) if each.metadata["Name"] not in ABSENT)

importlib.machinery.PathFinder.find_spec = staticmethod(find_present_spec)
importlib.metadata.MetadataPathFinder.find_distributions = staticmethod(find_present_distributions)
"""
"""What Python runs at its start so that packages are missing, with their metadata."""


def doctor(*flags: str, folder: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    path = [str(folder)] if folder else []
    return subprocess.run(
        [sys.executable, "-m", "featuretap.command_line", "doctor", *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def report_of(*flags: str, folder: Path | None = None, **variables: str) -> tuple[int, dict[str, Any]]:
    ran = doctor("--json", *flags, folder=folder, **variables)
    assert ran.stderr == ""
    return ran.returncode, json.loads(ran.stdout)


def write_package(folder: Path, name: str, code: str, version: str = "1.0") -> None:
    """Install a fake package that takes precedence over the real one."""
    write_metadata(folder, name, "", version=version)
    (folder / f"{name}.py").write_text(code)


def make_absent(folder: Path, *absent: str) -> Path:
    (folder / "sitecustomize.py").write_text(ABSENT.format(absent=absent))
    return folder


def package_of(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [package for package in report["packages"] if package["name"] == name]
    return dict(found)


def problems_of(report: dict[str, Any]) -> list[str]:
    return [f"{found['problem']} → {found['advice']}" for found in report["problems"]]


@pytest.fixture(scope="module")
def full() -> tuple[int, dict[str, Any]]:
    """Return the exit status and JSON of a full report on this installation."""
    return report_of()


def test_a_working_installation_has_no_problems(full: tuple[int, dict[str, Any]]) -> None:
    status, report = full
    assert (status, report["problems"]) == (0, [])
    assert report.keys() == KEYS
    assert (report["schema"], report["featuretap"]) == (1, featuretap.__version__)
    assert package_of(report, "torch")["version"] is not None


def test_runtimes_are_measured(full: tuple[int, dict[str, Any]]) -> None:
    report = full[1]
    times = {runtime["name"]: runtime["milliseconds"] for runtime in report["runtimes"]}
    measured = {name: time for name, time in times.items() if time is not None}
    assert set(measured) >= {"eager", "fused", "onnxruntime", "openvino"}
    assert report["fastest"] == min(measured, key=measured.__getitem__)
    notes = {runtime["name"]: runtime["note"] for runtime in report["runtimes"] if runtime["note"]}
    assert notes["inductor"] == "not measured, because it compiles slowly"
    assert report["threads"] == {"runtimes": 1, "PyTorch": 1}


def test_the_text_is_plain_lines_under_headings(run: Callable[..., Completed]) -> None:
    ran = run("doctor", "--quick")
    assert (ran.status, ran.err) == (0, "")
    lines = ran.out.splitlines()
    conclusion = "No problems found. Packages were not imported, and runtimes not measured."
    assert [line for line in lines if line and not line.startswith(" ")] == [*HEADINGS, conclusion]
    fields = [line for line in lines if line.startswith("  ")]
    assert not [line for line in fields if not re.fullmatch(r"  (\S.*?: +\S.*|none|not measured)", line)]
    # Values are aligned under each heading.
    versions = lines[lines.index("Versions") + 1 : lines.index("")]
    assert len({re.match(r"  \S+: +", line).end() for line in versions}) == 1  # type: ignore[union-attr]
    assert not re.search(r"[\x1b│┃━─]", ran.out)


def test_the_help_says_what_quick_skips_and_where_the_report_goes(run: Callable[..., Completed]) -> None:
    text = " ".join(run("doctor", "--help").out.split())
    assert "Faster: do not import packages or measure runtimes." in text
    assert "Check the installation, and print a report for the bug-report form." in text


def test_quick_imports_nothing_and_measures_nothing(run: Callable[..., Completed]) -> None:
    report = json.loads(run("doctor", "--quick", "--json").out)
    assert (report["runtimes"], report["fastest"]) == ([], None)
    assert report["threads"].keys() == {"runtimes"}


def test_paths_do_not_show_the_home_folder(
    run: Callable[..., Completed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "alice"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", f"{home}-other")
    ran = run("doctor", "--quick")
    assert "TORCH_HOME:" in ran.out
    assert "~/torch/hub/checkpoints (does not exist)" in ran.out
    assert re.findall(r"\S*alice\S*", ran.out) == [f"{home}-other/featuretap/datasets", f"{home}-other"]


def test_variables_that_are_set_are_listed(run: Callable[..., Completed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURETAP_MAX_PIXELS", "7\n8")
    monkeypatch.setenv("HF_TOKEN", "secret")
    out = run("doctor", "--quick").out
    assert "  FEATURETAP_MAX_PIXELS: 7 8\n" in out
    assert "secret" not in out


def test_every_package_has_the_extra_that_installs_it() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    required = [re.split(r"[\[><=]", text)[0] for text in PROJECT["project"]["dependencies"]]
    assert set(REQUIRED) <= set(required)
    for name, (_, extra) in EXTRAS.items():
        assert name in [re.split(r"[\[><=]", text)[0] for text in extras[extra]], name


def test_every_variable_that_the_code_reads_is_listed() -> None:
    root = Path(featuretap.__file__).parent
    folders = ("catalogue", "command_line", "runtimes", "support", "weights")
    read = {
        name
        for folder in folders
        for path in (root / folder).rglob("*.py")
        for name in re.findall(r'environ(?:\.get\(|\[)"([A-Z_]+)"', path.read_text())
    }
    assert read
    assert read <= set(installation.VARIABLES)


def test_an_installation_for_inference_has_no_problems(tmp_path: Path) -> None:
    status, report = report_of(folder=make_absent(tmp_path, *LEFT_OUT))
    assert (status, report["problems"]) == (0, [])
    assert package_of(report, "torch")["version"] is None
    notes = {runtime["name"]: runtime["note"] for runtime in report["runtimes"]}
    assert notes["eager"] == notes["fused"] == "not measured, because PyTorch is not installed"
    assert report["fastest"] in ("onnxruntime", "openvino")
    assert report["threads"] == {"runtimes": 1}
    text = doctor("--quick", folder=tmp_path).stdout
    assert "  torch:            not installed (pip install torch)\n" in text


def test_missing_packages_name_what_installs_them(tmp_path: Path) -> None:
    status, report = report_of(folder=make_absent(tmp_path, "numpy", "openvino", "timm"))
    assert status == 1
    assert problems_of(report)[:2] == [
        "timm is not installed → pip install timm",
        "numpy is not installed → pip install numpy",
    ]
    text = doctor("--quick", folder=tmp_path).stdout
    assert "  openvino:         not installed (pip install 'featuretap[openvino]')\n" in text
    assert "Problems\n  1. timm is not installed\n     → pip install timm\n" in text
    (openvino,) = [runtime for runtime in report["runtimes"] if runtime["name"] == "openvino"]
    assert openvino["note"] == "not installed (pip install 'featuretap[openvino]')"


def test_a_torchvision_that_does_not_fit_torch_is_explained(tmp_path: Path) -> None:
    raised = "raise RuntimeError('operator torchvision::nms does not exist')"
    write_package(tmp_path, "torchvision", raised, "0.29.1")
    status, report = report_of(folder=tmp_path)
    assert status == 1
    torch = package_of(report, "torch")["version"]
    assert problems_of(report)[0] == (
        "torchvision cannot be imported: RuntimeError: operator torchvision::nms does not exist → "
        f"torch {torch} and torchvision 0.29.1 do not fit; install both with one command in a fresh environment: "
        "pip install torch torchvision"
    )


def test_packages_that_end_python_or_raise_are_lines(tmp_path: Path) -> None:
    write_package(tmp_path, "onnxruntime", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "1.32.0")
    write_package(tmp_path, "openvino", "raise SystemExit('a\\nlong\\nstory')", "2026.4.1")
    write_package(tmp_path, "timm", "import os\nos._exit(3)", "1.0.31")
    status, report = report_of(folder=tmp_path)
    assert status == 1
    assert problems_of(report) == [
        "timm cannot be imported: ends Python with status 3 → pip install --force-reinstall timm",
        f"onnxruntime cannot be imported: ends Python with {signal.SIGSEGV.name} → "
        "pip install --force-reinstall onnxruntime",
        "openvino cannot be imported: SystemExit: a long story → pip install --force-reinstall openvino",
    ]
    errors = {runtime["name"]: runtime["error"] for runtime in report["runtimes"]}
    assert errors["onnxruntime"] == "ends Python with SIGSEGV"
    assert report["fastest"] in ("eager", "fused")


def test_an_old_package_is_a_problem(tmp_path: Path) -> None:
    write_package(tmp_path, "pillow", "", "9.0")
    status, report = report_of("--quick", folder=tmp_path)
    assert (status, problems_of(report)) == (
        1,
        ["featuretap needs pillow>=10.3; 9.0 is installed → pip install 'pillow>=10.3'"],
    )


def test_failed_plugins_are_listed_with_their_error(tmp_path: Path) -> None:
    folder = write_installed(tmp_path, {"tiny": GOOD["tiny"], "raises": CULPRITS["raises"]})
    ran = doctor("--quick", folder=folder, FEATURETAP_STRICT="1")
    assert (ran.returncode, ran.stderr) == (1, "")
    assert re.search(r"  tiny \(featuretap-tiny 1.2\): +loaded\n", ran.stdout)
    assert re.search(r"  raises \(featuretap-raises 1.2\): +failed: ImportError: the wrong universe\n", ran.stdout)
    assert ran.stdout.endswith(
        "Problems\n"
        "  1. plugin 'raises' of distribution 'featuretap-raises' failed: ImportError: the wrong universe\n"
        "     → featuretap plugins doctor featuretap-raises\n"
    )


def test_ambiguous_names_are_problems(tmp_path: Path) -> None:
    folder = write_installed(tmp_path, {name: CULPRITS[name] for name in ("twin-one", "twin-two")})
    status, report = report_of("--quick", folder=folder)
    (problem,) = problems_of(report)
    assert (status, "twinnet" in problem, problem.endswith(" → featuretap plugins doctor")) == (1, True, True)


def test_a_plugin_that_ends_python_does_not_hide_the_rest(tmp_path: Path) -> None:
    write_metadata(tmp_path, "featuretap-ends", "[featuretap]\nends = plugin_ends\n")
    (tmp_path / "plugin_ends.py").write_text("import os\nos._exit(7)\n")
    status, report = report_of("--quick", folder=tmp_path)
    assert (status, problems_of(report)) == (
        1,
        ["loading the plugins fails: ends Python with status 7 → featuretap plugins doctor"],
    )
    assert report["folders"]


def test_a_catalogue_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "featuretap.toml"
    path.write_text("schema = 1\n[backbone]\n")
    status, report = report_of("--quick", FEATURETAP_CONFIG=str(path))
    (problem,) = problems_of(report)
    assert status == 1
    assert problem.startswith(f"loading the plugins fails: {path}: ")
    assert problem.endswith(" → correct that file")
    assert report["weights"] is not None


def test_weights_in_packages_are_listed(official_weights: Path) -> None:
    listed = {entry["name"]: entry["path"] for entry in examine_installation(quick=True).weights}
    assert Path(listed["mobilenet_v2.imagenet1k_v1"]).expanduser() == official_weights


def test_paths_that_cannot_exist_are_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "file" / "below", tmp_path / "loop" / "below", tmp_path / ("a" * 300)):
        assert not installation._folder("cache", str(path)).exists
    assert installation._folder("cache", str(tmp_path / "a" / "b")) == Folder("cache", f"{tmp_path}/a/b", False, True)


def test_a_cache_that_is_not_writable_is_a_problem() -> None:
    folders = [
        Folder("configuration", "/etc/featuretap.toml", exists=True, writable=False),
        Folder("torch.hub cache", "/torch/hub", exists=False, writable=False),
        Folder("Hugging Face cache", "/hub", exists=True, writable=False),
        Folder("data set cache", "/sets", exists=True, writable=True),
    ]
    found = [f"{one.problem} → {one.advice}" for one in installation._folder_problems(folders)]
    assert found == [
        "the torch.hub cache '/torch/hub' is not writable → set TORCH_HOME to another folder",
        "the Hugging Face cache '/hub' is not writable → set HF_HOME to another folder",
    ]


def test_a_runtime_that_fails_is_a_problem_once() -> None:
    runtimes = [RuntimeTime("eager", 20.0), RuntimeTime("openvino", error="RuntimeError: no")]
    found = [one.problem for one in installation._runtime_problems(runtimes, [])]
    assert found == ["the runtime 'openvino' fails: RuntimeError: no"]
    broken = [Package("openvino", "2026.4", "openvino", "ImportError: no")]
    assert list(installation._runtime_problems(runtimes, broken)) == []
    fused = [RuntimeTime("fused", error="ImportError: no"), RuntimeTime("onnxruntime", error="ValueError: no")]
    without_torch = [Package("torch", "2.14", error="ImportError: no")]
    found = [one.problem for one in installation._runtime_problems(fused, without_torch)]
    assert found == ["the runtime 'onnxruntime' fails: ValueError: no"]


def test_an_installation_without_any_runtime_has_a_problem() -> None:
    runtimes = [RuntimeTime("eager", note="not measured, because PyTorch is not installed")]
    (found,) = installation._runtime_problems(runtimes, [])
    assert (found.problem, found.advice) == ("no runtime is installed", "pip install onnx onnxruntime")


def test_a_step_that_takes_too_long_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_package(tmp_path, "numpy", "import time\ntime.sleep(60)\n")
    monkeypatch.setattr(installation, "PATIENCE", 4.0)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    steps = installation._take_steps(["numpy"], measure=False)
    assert steps["import numpy"]["error"] == installation.TIMED_OUT


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("flags : fpu avx2 avx512f avx512_vnni avx512_bf16", ("AVX2", "AVX-512", "VNNI", "BF16")),
        ("flags : avx2 avx_vnni amx_tile amx_bf16", ("AVX2", "VNNI", "BF16", "AMX")),
        ("Features : fp asimd asimddp i8mm bf16 sve", ("BF16", "NEON", "dotprod", "i8mm", "SVE")),
        ("flags : fpu sse", ()),
        ("processor : 0", None),
    ],
)
def test_vector_units_are_read_from_the_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, units: tuple[str, ...] | None
) -> None:
    (tmp_path / "cpuinfo").write_text(f"{text}\n")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert processor.vector_units() == units
