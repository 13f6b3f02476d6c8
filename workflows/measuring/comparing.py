"""Time backbones in eager mode and in runtimes, and their counterparts in other libraries, on the same images."""

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featuretap import registry
from featuretap.runtimes.exported_files import default_runtime
from featuretap.runtimes.graphs import Network
from featuretap.runtimes.sessions import is_exported
from featuretap.specs import BackboneSpec
from featuretap.specs.addresses import LEVELS
from featuretap.specs.description import format_options
from featuretap.specs.head import backbone_of
from featuretap.specs.layout import Layout
from featuretap.specs.runtime import AUTO, RESERVED
from featuretap.support.errors import OptionError, did_you_mean
from featuretap.support.processor import available_cores, processor_name
from featuretap.support.timing import PAUSE, Timing, time_interleaved
from featuretap.support.version import __version__
from featuretap.weights.layouts import MismatchError, layout_for
from featuretap.workflows.measuring.file_specs import find_resize_target, read_file_spec

EAGER = "eager"
"""Name of PyTorch's eager mode in the list of runtimes."""

MAP_SIDE = 64
"""Height and width in pixels of the image on which the maps of two libraries are compared."""

WARM_UP = 5
"""Number of untimed rounds."""

DISTRIBUTIONS = ("torch", "torchvision", "timm", "onnxruntime", "openvino")

MATRIX_SIDE = 1024
"""Size of the square matrices: large enough to keep all cores busy, small enough to fit into the caches."""


@dataclass(frozen=True, eq=False)
class Baseline:
    """A network to time: a backbone in a runtime or library, or an exported file.

    Args:
        name: name of the backbone, or path of the file.
        by: the runtime or library that runs it, or "eager".
        run: runs the network on images (N, C, H, W).
        spec: spec of the network.
        parameters: number of parameters.
        size: (height, width) to which the network itself resizes images, as detectors do; None if it does not.
    """

    name: str
    by: str
    run: Callable[[Tensor], object]
    spec: Network
    parameters: int
    size: tuple[int, int] | None = None

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return backbone_of(self.spec).in_channels

    def macs(self, size: tuple[int, int]) -> int:
        """Return the multiply-adds for an image of (height, width) pixels."""
        return self.spec.macs(*(self.size or size))


@dataclass(frozen=True)
class Machine:
    """The machine that runs a benchmark.

    Args:
        processor: name of the processor.
        cores: number of cores available to this process.
        threads: number of threads of PyTorch and the runtimes.
        versions: distribution → version.
    """

    processor: str
    cores: int
    threads: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Setting:
    """The images of a call.

    Args:
        size: (height, width) in pixels.
        batch: number of images.
    """

    size: tuple[int, int]
    batch: int

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.batch} image{'s' * (self.batch > 1)} of {height}×{width} pixels"


@dataclass(frozen=True)
class Measurement:
    """The time of a network in one setting.

    Args:
        name: name of the backbone, or path of the file.
        by: the runtime or library, or "eager".
        setting: the images of a call.
        parameters: number of parameters.
        macs: multiply-adds for one image.
        timing: times of the calls.
        limit: the machine's maximum multiply-adds per second.
    """

    name: str
    by: str
    setting: Setting
    parameters: int
    macs: int
    timing: Timing
    limit: float

    @property
    def limit_share(self) -> float:
        """Minimum time for the multiply-adds on this machine, as a fraction of the median time."""
        return self.macs * self.setting.batch / self.limit / self.timing.median

    def as_json(self) -> dict[str, Any]:
        """Return the measurement as JSON values, with times in seconds."""
        timing = self.timing
        return {
            "name": self.name,
            "by": self.by,
            "size": list(self.setting.size),
            "batch": self.setting.batch,
            "parameters": self.parameters,
            "macs": self.macs,
            "median": timing.median,
            "quartiles": list(timing.quartiles),
            "median_per_image": timing.median / self.setting.batch,
            "ratio": timing.ratio,
            "ratio_quartiles": list(timing.ratio_quartiles),
            "limit_share": self.limit_share,
            "seconds": list(timing.seconds),
        }


@dataclass(frozen=True)
class Comparison:
    """Measurements of several networks and settings on one machine.

    Args:
        machine: the machine.
        limit: its maximum multiply-adds per second.
        rounds: number of timed rounds.
        measurements: ordered by setting, then by network.
    """

    machine: Machine
    limit: float
    rounds: int
    measurements: Sequence[Measurement]

    @property
    def by_setting(self) -> dict[Setting, list[Measurement]]:
        """Setting → its measurements."""
        settings = dict.fromkeys(measurement.setting for measurement in self.measurements)
        return {setting: [m for m in self.measurements if m.setting == setting] for setting in settings}

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values, with times in seconds."""
        return {
            "machine": {**asdict(self.machine), "multiply_adds_per_second": self.limit},
            "rounds": self.rounds,
            "warm_up": WARM_UP,
            "pause": PAUSE,
            "measurements": [measurement.as_json() for measurement in self.measurements],
        }


def build_baselines(
    names: Iterable[str],
    runtimes: Iterable[str] = (EAGER,),
    against: Iterable[str] = (),
    *,
    arguments: Mapping[str, Any] = {},
    threads: int | None = None,
    begin: Callable[[str], object] = lambda label: None,
) -> tuple[list[Baseline], list[str]]:
    """Build every backbone for every runtime and library.

    Args:
        names: backbone names, or paths of exported files.
        runtimes: names of runtimes, or "eager".
        against: libraries to compare with, "timm" or "torchvision".
        arguments: taps and options of the backbones.
        threads: number of runtime threads; None for PyTorch's number.
        begin: called with the label of each network before it is built, since compilation may take long.

    Returns:
        The networks, and a message for each counterpart that a library does not have.

    Raises:
        OptionError: `arguments` or libraries are given for a file.
    """
    names, runtimes, against = (tuple(dict.fromkeys(values)) for values in (names, runtimes, against))
    # Check everything before a runtime compiles for minutes.
    for runtime in runtimes:
        if runtime not in RESERVED:
            registry.default.runtime(runtime).check_installed()
    files = [name for name in names if is_exported(registry.default, name)]
    if files and (arguments or against):
        raise OptionError(
            f"options and other libraries only apply to backbone names, and {files[0]!r} is a file; omit them"
        )
    for name in names:
        if name not in files:
            registry.spec(name, features_only=True, **arguments)
    baselines, left_out = [], []
    for name in names:
        if name in files:
            usual = default_runtime(registry.default, Path(name)).name
            for runtime in [runtime for runtime in runtimes if runtime != EAGER] or [usual]:
                begin(f"{name}, {runtime}")
                baselines.append(open_file(name, runtime, threads=threads))
            continue
        for runtime in runtimes:
            begin(f"{name}, {runtime}")
            baselines.append(build_own(name, runtime, arguments, threads=threads))
        for library in against:
            begin(f"{name}, {library}")
            try:
                baselines.append(build_counterpart(name, library, arguments))
            except MismatchError as mismatch:
                left_out.append(str(mismatch))
    return baselines, left_out


def build_own(
    name: str, runtime: str = EAGER, arguments: Mapping[str, Any] = {}, *, threads: int | None = None
) -> Baseline:
    """Build a randomly initialized backbone, in eager mode or compiled for a runtime.

    Args:
        name: name of the backbone.
        runtime: name of the runtime, or "eager".
        arguments: taps and options of the backbone.
        threads: number of runtime threads; None for PyTorch's number.

    Returns:
        The network.
    """
    model = registry.build(name, features_only=True, **arguments).eval()
    if runtime == EAGER:
        return _baseline(name, runtime, model, model, arguments)
    compiled = registry.compile(model, runtime, threads=threads)
    label = f"{AUTO}: {compiled.runtime}" if runtime == AUTO else runtime
    return _baseline(name, label, compiled, model, arguments)


def open_file(path: str, runtime: str, *, threads: int | None = None) -> Baseline:
    """Open an exported file in a runtime.

    Args:
        path: path of the file.
        runtime: name of the runtime.
        threads: number of runtime threads; None for PyTorch's number.

    Returns:
        The network.

    Raises:
        ExportError: the file cannot be opened, or its multiply-adds cannot be counted.
    """
    compiled = registry.compile(path, runtime, threads=threads)
    spec = read_file_spec(path, compiled.runtime)
    label = f"{AUTO}: {compiled.runtime}" if runtime == AUTO else runtime
    return Baseline(path, label, compiled, spec, spec.parameters, find_resize_target(spec))


def build_counterpart(name: str, library: str, arguments: Mapping[str, Any] = {}) -> Baseline:
    """Build another library's randomly initialized network that returns the same maps as a backbone, in eager mode.

    Args:
        name: name of the backbone.
        library: "timm" or "torchvision".
        arguments: taps and options of the backbone.

    Returns:
        The network.

    Raises:
        OptionError: the library is unknown.
        MismatchError: the library has no such network, or its feature extractor returns different maps.
    """
    if library not in LIBRARIES:
        raise OptionError(
            f"cannot compare with the library {library!r}; available libraries: {', '.join(LIBRARIES)}"
            f"{did_you_mean(library, LIBRARIES)}"
        )
    spec: Any = registry.spec(name, features_only=True, **arguments)
    label = format_options(name, {option: value for option, value in arguments.items() if option != "taps"})
    try:
        layout = layout_for(spec, library)
    except MismatchError:
        layout = None
    if layout is None or not layout.architecture:
        raise MismatchError(f"{library} has no counterpart of {label}; skipped")
    # The libraries only return the last map of each resolution.
    model = LIBRARIES[library](layout, spec).eval() if set(spec.taps) <= set(LEVELS) else None
    if model is None or _map_shapes(model, spec) != list(spec.tap_shapes(MAP_SIDE, MAP_SIDE).values()):
        raise MismatchError(
            f"{library}'s {layout.architecture} does not return {', '.join(spec.taps)} of {label}; skipped"
        )
    return _baseline(name, library, model, model, arguments)


class TimmMaps(nn.Module):
    """timm's maps for networks whose feature extractor lacks the last map, after all blocks, such as MobileNetV2."""

    def __init__(self, network: Any, indices: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.indices = list(indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of images (N, C, H, W), with the network's last map in place of the extractor's."""
        last, maps = self.network.forward_intermediates(images, indices=self.indices)
        return [*maps[:-1], last]


def _build_timm(layout: Layout, spec: BackboneSpec) -> nn.Module:
    import timm

    indices = tuple(LEVELS.index(level) for level in spec.taps)
    features: Any = timm.create_model(layout.architecture, features_only=True, out_indices=indices, **layout.arguments)
    if features.feature_info.channels() != [tap.channels for tap in spec.taps.values()]:
        features = TimmMaps(timm.create_model(layout.architecture, num_classes=0, **layout.arguments), indices)
    model: nn.Module = features
    return model


def _build_torchvision(layout: Layout, spec: BackboneSpec) -> nn.Module:
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor

    network = get_model(layout.architecture, weights=None, **layout.arguments)
    blocks = {}
    for address, path in spec.paths.items():
        theirs = next(theirs for ours, theirs in layout.names.items() if ours.startswith(f"{path}."))
        # Blocks are children of torchvision's `features`: "features.16.0.weight" belongs to the block "features.16".
        blocks[".".join(theirs.split(".")[:2])] = address
    extractor: nn.Module = create_feature_extractor(network, blocks)
    return extractor


LIBRARIES: Mapping[str, Callable[[Layout, BackboneSpec], nn.Module]] = {
    "timm": _build_timm,
    "torchvision": _build_torchvision,
}
"""Library → function that builds its network for a layout and returns the maps of a spec."""


@torch.inference_mode()
def _map_shapes(model: nn.Module, spec: BackboneSpec) -> list[tuple[int, ...]]:
    maps = model(torch.zeros(1, spec.in_channels, MAP_SIDE, MAP_SIDE))
    return [tuple(feature.shape[1:]) for feature in (maps.values() if isinstance(maps, dict) else maps)]


def _baseline(
    name: str, by: str, run: Callable[[Tensor], object], model: nn.Module, arguments: Mapping[str, Any]
) -> Baseline:
    spec = registry.spec(name, features_only=True, **arguments)
    assert isinstance(spec, BackboneSpec)
    return Baseline(name, by, run, spec, sum(parameter.numel() for parameter in model.parameters()))


@torch.inference_mode()
def compare(
    baselines: Sequence[Baseline],
    settings: Iterable[Setting],
    rounds: int,
    done: Callable[[], object] = lambda: None,
) -> Comparison:
    """Time networks in alternation on the same images, with PyTorch's current number of threads.

    Args:
        baselines: the networks. Ratios are relative to the first.
        settings: the images of the calls.
        rounds: number of timed rounds.
        done: called after each call, including the `WARM_UP` rounds.

    Returns:
        The measurements.
    """
    # Count first: a network that cannot be counted at a size cannot run at it either.
    counted = [(setting, [(b, b.macs(setting.size)) for b in baselines]) for setting in settings]
    limit = measure_limit()
    timed = []
    for setting, counts in counted:
        channels = {baseline.channels for baseline in baselines}
        images = {count: torch.randn(setting.batch, count, *setting.size) for count in channels}
        runs = {baseline: partial(baseline.run, images[baseline.channels]) for baseline in baselines}
        timings = time_interleaved(runs, rounds, WARM_UP, PAUSE, done)
        timed += [(setting, baseline, macs, timings[baseline]) for baseline, macs in counts]
    # Measured twice, since the machine may have been busy at the start.
    limit = max(limit, measure_limit())
    measurements = [Measurement(b.name, b.by, setting, b.parameters, n, t, limit) for setting, b, n, t in timed]
    return Comparison(this_machine(), limit, rounds, measurements)


def this_machine() -> Machine:
    """Return this machine, with PyTorch's current number of threads."""
    versions = {"featuretap": __version__, "python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return Machine(processor_name(), available_cores(), torch.get_num_threads(), versions)


@contextmanager
def set_torch_threads(count: int | None) -> Iterator[int]:
    """Set PyTorch's number of threads inside the context, unless `count` is None, and yield the number."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield count or before
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def measure_limit(repeats: int = 30) -> float:
    """Measure the maximum float32 multiply-adds per second of a matrix multiplication with PyTorch's current threads.

    Convolutions are not faster. The multiply-adds of a network divided by this limit are its minimum time in seconds.

    Args:
        repeats: number of multiplications; the fastest counts.

    Returns:
        Multiply-adds per second.
    """
    left, right, product = (
        torch.rand(MATRIX_SIDE, MATRIX_SIDE),
        torch.rand(MATRIX_SIDE, MATRIX_SIDE),
        torch.empty(MATRIX_SIDE, MATRIX_SIDE),
    )
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        best = min(best, time.perf_counter() - start)
    return MATRIX_SIDE**3 / best
