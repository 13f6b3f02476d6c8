"""The state of an installation: versions, processor, runtimes, plugins, weights, folders, and what is wrong with it.

Nothing here imports PyTorch or another package that may be broken: a second process does, see `installation_steps`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from signal import Signals
from tempfile import TemporaryDirectory
from typing import Any

from featuretap.support.processor import available_cores, processor_name, vector_units
from featuretap.support.text import error_line, one_line
from featuretap.support.version import __version__

SCHEMA = 1

PATIENCE = 180.0
"""Seconds that the second process may take before the step it is at is reported as failed."""

BACKBONE = "mobilenet_v3_large"
"""The network that runtimes are measured with."""

REQUIRED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "numpy": "numpy",
    "pillow": "PIL",
    "safetensors": "safetensors",
    "pluggy": "pluggy",
    "click": "click",
    "rich": "rich",
    "huggingface_hub": "huggingface_hub",
}
"""Distribution that every full installation has → its module."""

EXTRAS = {
    "onnx": ("onnx", "onnxruntime"),
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "onnxscript": ("onnxscript", "onnxruntime"),
    "openvino": ("openvino", "openvino"),
    "accelerate": ("accelerate", "train"),
    "torchmetrics": ("torchmetrics", "train"),
    "faster-coco-eval": ("faster_coco_eval", "train"),
    "matplotlib": ("matplotlib", "train"),
    "pyarrow": ("pyarrow", "parquet"),
    "protobuf": ("google.protobuf", "tensorflow"),
    "ray": ("ray", "ray"),
}
"""Distribution of an extra → its module, and the extra that installs it."""

LEFT_OUT = ("torch", "torchvision", "timm", "rich", "huggingface_hub")
"""Distributions that an installation for inference leaves out, see requirements-inference.txt."""

IMPORTED = ("numpy", "PIL", "safetensors", "onnx", "onnxruntime", "openvino", "torch", "torchvision", "timm")
"""Modules whose import is tried. A later one may import the earlier ones."""

VARIABLES = (
    "FEATURETAP_CONFIG",
    "FEATURETAP_MAX_PIXELS",
    "FEATURETAP_OFFLINE",
    "FEATURETAP_PLUGINS",
    "FEATURETAP_STRICT",
    "CUDA_VISIBLE_DEVICES",
    "CXX",
    "FORCE_COLOR",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "NO_COLOR",
    "OMP_NUM_THREADS",
    "TORCH_HOME",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
)
"""Environment variables that featuretap or the libraries it calls read. None of them holds a secret."""

PROGRAM = """\
import json, sys
request = json.loads(sys.argv[1])
sys.path[:] = request["path"]
from featuretap.workflows.measuring.installation_steps import run
run(request)
"""

TIMED_OUT, ENDED = f"takes more than {PATIENCE:g} seconds", "ends Python with"
ENDINGS = (TIMED_OUT, ENDED)


@dataclass(frozen=True)
class Package:
    """A package that featuretap uses.

    Args:
        name: of the distribution.
        version: installed version, or None.
        extra: extra of featuretap that installs it, or "" for packages of every installation.
        error: why it cannot be imported, in one line; "" if it can, or if the import was not tried.
    """

    name: str
    version: str | None
    extra: str = ""
    error: str = ""

    @property
    def install(self) -> str:
        """The requirement for pip that installs it."""
        return f"featuretap[{self.extra}]" if self.extra else "featuretap"


@dataclass(frozen=True)
class RuntimeTime:
    """How fast a runtime computes the feature maps of `BACKBONE` for one image.

    Args:
        name: of the runtime, or "eager".
        milliseconds: median time of a call, or None.
        note: why there is no time, if that is not an error.
        error: why the runtime fails, in one line, or "".
    """

    name: str
    milliseconds: float | None = None
    note: str = ""
    error: str = ""


@dataclass(frozen=True)
class Folder:
    """A folder or file that featuretap reads or writes."""

    name: str
    path: str
    exists: bool
    writable: bool


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with the installation, and what to do."""

    problem: str
    advice: str


@dataclass(frozen=True)
class Installation:
    """Everything that `featuretap doctor` reports. Paths begin with "~" in place of the home folder.

    Args:
        python: version and path of Python.
        system: operating system and architecture.
        packages: the packages that featuretap uses.
        processor: name of the processor.
        vector_units: its vector units; None where the system does not list them.
        cores: processor cores that this process may use.
        threads: library → its default number of threads.
        gpus: names of the GPUs that PyTorch can use.
        cuda: CUDA version of PyTorch's build; None for a CPU build.
        runtimes: times of the runtimes.
        plugins: one mapping for each plugin, with its distribution, version, status and error.
        weights: one mapping for each published weights file on this machine, with its name and path.
        folders: folders in use.
        environment: the variables that are set, of those featuretap reads.
        problems: what is wrong.
    """

    python: str
    system: str
    packages: Sequence[Package]
    processor: str
    vector_units: Sequence[str] | None
    cores: int
    threads: Mapping[str, int]
    gpus: Sequence[str]
    cuda: str | None
    runtimes: Sequence[RuntimeTime]
    plugins: Sequence[Mapping[str, Any]]
    weights: Sequence[Mapping[str, str]]
    folders: Sequence[Folder]
    environment: Mapping[str, str]
    problems: Sequence[Problem]

    @property
    def fastest(self) -> RuntimeTime | None:
        """The fastest runtime, or None if none was measured."""
        measured = [runtime for runtime in self.runtimes if runtime.milliseconds is not None]
        return min(measured, key=lambda runtime: runtime.milliseconds or 0, default=None)

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        fastest = self.fastest
        return {
            "schema": SCHEMA,
            "featuretap": __version__,
            **asdict(self),
            "backbone": BACKBONE,
            "fastest": fastest and fastest.name,
        }


def examine_installation(*, quick: bool = False) -> Installation:
    """Examine the installation that this process runs in.

    Args:
        quick: whether to leave out importing packages and measuring runtimes, which take seconds.

    Returns:
        The report. Failures are part of it: no state of the installation raises an error.
    """
    steps = _take_steps(() if quick else IMPORTED, measure=not quick)
    packages = [_package(name, module, "", steps) for name, module in REQUIRED.items()]
    packages += [_package(name, module, extra, steps) for name, (module, extra) in EXTRAS.items()]
    torch = steps.get("import torch", {}).get("result", {})
    threads = {"runtimes": steps.get("threads", {}).get("result"), "PyTorch": torch.get("threads")}
    plugins = steps.get("plugins", {}).get("result", {"plugins": [], "problems": []})
    folders = [_folder(**folder) for folder in steps.get("folders", {}).get("result", ())]
    runtimes = [_runtime(name, step) for name, step in steps.items() if name.startswith("measure ")]
    report = Installation(
        python=f"{platform.python_version()} ({sys.executable})",
        system=_system(),
        packages=packages,
        processor=processor_name(),
        vector_units=vector_units(),
        cores=available_cores(),
        threads={library: count for library, count in threads.items() if count},
        gpus=torch.get("gpus", []),
        cuda=torch.get("cuda"),
        runtimes=runtimes,
        plugins=plugins["plugins"],
        weights=steps.get("weights", {}).get("result", []),
        folders=folders,
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
        problems=[
            *_package_problems(packages),
            *_plugin_problems(plugins),
            *_runtime_problems(runtimes, packages),
            *_folder_problems(folders),
            *_step_problems(steps),
        ],
    )
    return _hide_home(report)


def _take_steps(packages: Sequence[str], *, measure: bool) -> dict[str, dict[str, Any]]:
    """Return step → its result or error. A step that ends the process is followed by the rest in a new process."""
    steps: dict[str, dict[str, Any]] = {}
    discover = True
    with TemporaryDirectory(prefix="featuretap-doctor-") as folder:
        for number in range(1000):
            path = Path(folder, str(number))
            path.touch()
            request = {
                "path": sys.path,
                "report": str(path),
                "packages": packages,
                "measure": measure,
                "discover": discover,
                "done": list(steps),
            }
            ending = _run_process(request, Path(folder, f"{number}-errors"))
            # The last line may be incomplete.
            *complete, _ = path.read_text(encoding="utf-8").split("\n")
            lines = [json.loads(line) for line in complete]
            started = [line["step"] for line in lines if line.keys() == {"step"}]
            steps |= {line["step"]: line for line in lines if line.keys() > {"step"}}
            if lines and lines[-1].get("complete"):
                break
            interrupted = started[-1] if started and started[-1] not in steps else "start"
            steps[interrupted] = {"step": interrupted, "error": ending}
            if interrupted == "start":
                break
            discover = discover and interrupted != "plugins"
    return steps


def _run_process(request: Mapping[str, Any], errors: Path) -> str:
    """Run a process that takes the steps and writes its errors into a file, and return how it ended."""
    environment = {name: value for name, value in os.environ.items() if name != "FEATURETAP_STRICT"}
    try:
        # Not a pipe, which processes that a package starts could keep open.
        with errors.open("wb") as stream:
            ran = subprocess.run(
                [sys.executable, "-c", PROGRAM, json.dumps(request)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
                # A failed plugin is to be reported, not raised.
                env=environment,
                timeout=PATIENCE,
                check=False,
            )
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    if ran.returncode < 0:
        return f"{ENDED} {Signals(-ran.returncode).name}"
    last = errors.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    return f"{ENDED} status {ran.returncode}" + (f": {one_line(last)}" if last else "")


def _package(name: str, module: str, extra: str, steps: Mapping[str, Any]) -> Package:
    step = steps.get(f"import {module}", {})
    try:
        installed: str | None = version(name)
    except PackageNotFoundError:
        # Some installers write no metadata.
        installed = step.get("result", {}).get("version") or None
        if step.get("missing"):
            step = {}
    except Exception as error:
        return Package(name, None, extra, f"its metadata cannot be read: {one_line(error_line(error))}")
    return Package(name, installed, extra, step.get("error", "") if installed or step.get("error") else "")


def _runtime(name: str, step: Mapping[str, Any]) -> RuntimeTime:
    name = name.removeprefix("measure ")
    if "error" in step:
        return RuntimeTime(name, error=step["error"])
    result = step["result"]
    if "median" in result:
        return RuntimeTime(name, round(result["median"] * 1000, 3))
    install = f" (pip install '{result['requires']}')" if result.get("requires") else ""
    return RuntimeTime(name, note=result["skipped"] + install)


def _folder(name: str, path: str) -> Folder:
    nearest = path
    while not os.path.exists(nearest) and nearest != os.path.dirname(nearest):
        nearest = os.path.dirname(nearest)
    return Folder(name, path, os.path.exists(path), os.access(nearest, os.W_OK))


def _system() -> str:
    libc = " ".join(filter(None, platform.libc_ver()))
    return f"{platform.system()} {platform.release()}, {platform.machine()}" + (f", {libc}" if libc else "")


def _package_problems(packages: Sequence[Package]) -> Iterator[Problem]:
    found = {package.name: package for package in packages}
    installed = {package.name for package in packages if package.version or package.error}
    full = bool(installed.intersection(("torch", "torchvision", "timm")))
    missing = [name for name in REQUIRED if name not in installed and (full or name not in LEFT_OUT)]
    for name in missing:
        yield Problem(f"{name} is not installed", f"pip install {name}")
    consequences = tuple(f"ModuleNotFoundError: No module named {REQUIRED[name]!r}" for name in missing)
    for package in packages:
        if package.error and not package.error.startswith(consequences):
            yield _import_problem(package, found)
    yield from _old_packages(packages)


def _import_problem(package: Package, found: Mapping[str, Package]) -> Problem:
    advice = f"pip install --force-reinstall {package.name}"
    if "torchvision::" in package.error:
        builds = f"torch {found['torch'].version} and torchvision {found['torchvision'].version} do not fit"
        advice = f"{builds}; install both with one command in a fresh environment: pip install torch torchvision"
    elif package.name == "torchvision" and found["torch"].version is None:
        advice = "pip install torch torchvision"
    return Problem(f"{package.name} cannot be imported: {package.error}", advice)


def _old_packages(packages: Sequence[Package]) -> Iterator[Problem]:
    """Yield a problem for each installed package whose version featuretap does not support."""
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(text) for text in requires("featuretap") or ()]
    except Exception:
        # The packages that the report lists are checked without it.
        return
    versions = {package.name: package.version for package in packages if package.version}
    needed = {requirement.name: requirement for requirement in requirements if requirement.name in versions}
    for name, requirement in needed.items():
        if not requirement.specifier.contains(versions[name] or "", prereleases=True):
            text = f"{name}{requirement.specifier}"
            yield Problem(f"featuretap needs {text}; {versions[name]} is installed", f"pip install '{text}'")


def _plugin_problems(found: Mapping[str, Any]) -> Iterator[Problem]:
    for plugin in found["plugins"]:
        if plugin["status"] == "failed":
            yield Problem(
                f"plugin {plugin['plugin']!r} of distribution {plugin['distribution']!r} failed: {plugin['error']}",
                f"featuretap plugins doctor {plugin['distribution']}",
            )
    for problem in found["problems"]:
        yield Problem(problem, "featuretap plugins doctor")


def _runtime_problems(runtimes: Sequence[RuntimeTime], packages: Sequence[Package]) -> Iterator[Problem]:
    broken = {package.name for package in packages if package.error}
    for runtime in runtimes:
        # A package that cannot be imported is a problem already, and runtimes without one of their own need PyTorch.
        if runtime.error and (runtime.name if runtime.name in EXTRAS else "torch") not in broken:
            advice = f"featuretap bench {BACKBONE} --runtime {runtime.name}"
            yield Problem(f"the runtime {runtime.name!r} fails: {runtime.error}", advice)
    if runtimes and not any(runtime.milliseconds for runtime in runtimes) and not broken:
        yield Problem("no runtime is installed", "pip install onnx onnxruntime")


def _folder_problems(folders: Sequence[Folder]) -> Iterator[Problem]:
    for folder in folders:
        if not folder.writable and folder.name != "configuration":
            variable = "TORCH_HOME" if folder.name.startswith("torch") else "HF_HOME"
            variable = "XDG_CACHE_HOME" if folder.name.startswith("data") else variable
            yield Problem(f"the {folder.name} {folder.path!r} is not writable", f"set {variable} to another folder")


def _step_problems(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    labels = {
        "start": "the examination cannot start",
        "threads": "reading the number of threads fails",
        "plugins": "loading the plugins fails",
        "weights": "listing the weights on this machine fails",
        "folders": "listing the folders fails",
    }
    for name, label in labels.items():
        if "error" in steps.get(name, {}):
            error = steps[name]["error"]
            advice = "include this text in a bug report"
            if name == "plugins":
                advice = "featuretap plugins doctor" if error.startswith(ENDINGS) else "correct that file"
            yield Problem(f"{label}: {error}", advice)


def _hide_home(report: Installation) -> Installation:
    """Return a report without the home folder, whose name is usually that of the user."""
    homes = {os.path.expanduser("~"), os.path.realpath(os.path.expanduser("~"))}
    pattern = "|".join(re.escape(home) for home in sorted(homes, key=len, reverse=True) if home not in ("/", "~", ""))
    found = re.compile(rf"(?:{pattern})(?![\w.-])") if pattern else None

    def hide(value: Any) -> Any:
        if isinstance(value, str):
            return found.sub("~", value) if found else value
        if isinstance(value, Mapping):
            return {key: hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [hide(item) for item in value]
        if isinstance(value, Package | RuntimeTime | Folder | Problem | Installation):
            return type(value)(**{key: hide(item) for key, item in vars(value).items()})
        return value

    hidden: Installation = hide(report)
    return hidden
