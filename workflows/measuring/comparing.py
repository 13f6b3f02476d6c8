"""Timing backbones, in eager mode and in runtimes, and the same networks of other libraries, on the same images."""

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
from featuretap.runtimes.exported_files import usual_runtime
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
from featuretap.workflows.measuring.file_specs import resized_to, spec_of_file

EAGER = "eager"
"""Name of PyTorch's eager mode, beside the names of runtimes."""

MAP_SIDE = 64
"""Pixels of the image on which maps of two libraries are compared."""

WARM_UP = 5
"""Rounds before the timed ones."""

DISTRIBUTIONS = ("torch", "torchvision", "timm", "onnxruntime", "openvino")

MATRIX_SIDE = 1024
"""Rows and columns of the matrices: large enough to keep the cores busy, small enough for their caches."""


@dataclass(frozen=True, eq=False)
class Baseline:
    """What is timed: a network that computes the maps of the backbone `name`, or the exported file `name`.

    Args:
        name: of the backbone, or path of the file.
        by: the runtime or the library that computes it, or "eager".
        run: a call with images (N, C, H, W).
        spec: of the network.
        parameters: their number, in the network or the file's spec.
        size: (height, width) to which the network resizes images of any size, as detectors do; None for no change.
    """

    name: str
    by: str
    run: Callable[[Tensor], object]
    spec: Network
    parameters: int
    size: tuple[int, int] | None = None

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return backbone_of(self.spec).in_channels

    def macs(self, size: tuple[int, int]) -> int:
        """Return the multiply-adds for an image of (height, width) pixels."""
        return self.spec.macs(*(self.size or size))


@dataclass(frozen=True)
class Machine:
    """A processor, its cores available to this process, the threads of PyTorch and runtimes, and installed versions."""

    processor: str
    cores: int
    threads: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Setting:
    """The images of a call: their (height, width) in pixels, and their number."""

    size: tuple[int, int]
    batch: int

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.batch} image{'s' * (self.batch > 1)} of {height}×{width} pixels"


@dataclass(frozen=True)
class Measurement:
    """The time of a call of a baseline, its multiply-adds for one image, and the machine's maximum of them a second."""

    name: str
    by: str
    setting: Setting
    parameters: int
    macs: int
    timing: Timing
    limit: float

    @property
    def limit_share(self) -> float:
        """Minimum time for as many multiply-adds, as a fraction of the median time of a call."""
        return self.macs * self.setting.batch / self.limit / self.timing.median

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values; times are in seconds."""
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
    """Measurements by setting and by network in each, and the machine with its maximum multiply-adds a second."""

    machine: Machine
    limit: float
    rounds: int
    measurements: Sequence[Measurement]

    @property
    def by_setting(self) -> dict[Setting, list[Measurement]]:
        """The measurements of each setting."""
        settings = dict.fromkeys(measurement.setting for measurement in self.measurements)
        return {setting: [m for m in self.measurements if m.setting == setting] for setting in settings}

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values; times are in seconds."""
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
    """Return every backbone by every runtime and library, and a sentence for each that a library does not have.

    Names may be paths of exported files. `arguments` are taps and options of the backbones, `threads` those of the
    runtimes (None: as many as PyTorch has). `begin` is called with a label of the next one, which may take long to
    compile.

    Raises:
        OptionError: `arguments` or libraries are given for a file.
    """
    names, runtimes, against = (tuple(dict.fromkeys(values)) for values in (names, runtimes, against))
    # Errors are reported before a runtime compiles for minutes.
    for runtime in runtimes:
        if runtime not in RESERVED:
            registry.default.runtime(runtime).check_installed()
    files = [name for name in names if is_exported(registry.default, name)]
    if files and (arguments or against):
        raise OptionError(
            f"options and other libraries are for backbones by name, and {files[0]!r} is a file; leave them out"
        )
    for name in names:
        if name not in files:
            registry.spec(name, features_only=True, **arguments)
    baselines, left_out = [], []
    for name in names:
        if name in files:
            usual = usual_runtime(registry.default, Path(name)).name
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
    """Return a randomly initialised backbone of the registry, in eager mode or compiled for a runtime."""
    model = registry.build(name, features_only=True, **arguments).eval()
    if runtime == EAGER:
        return _baseline(name, runtime, model, model, arguments)
    compiled = registry.compile(model, runtime, threads=threads)
    label = f"{AUTO}: {compiled.runtime}" if runtime == AUTO else runtime
    return _baseline(name, label, compiled, model, arguments)


def open_file(path: str, runtime: str, *, threads: int | None = None) -> Baseline:
    """Return an exported file, as a runtime computes it.

    Raises:
        ExportError: the file cannot be opened, or its model cannot be counted.
    """
    compiled = registry.compile(path, runtime, threads=threads)
    spec = spec_of_file(path, compiled.runtime)
    label = f"{AUTO}: {compiled.runtime}" if runtime == AUTO else runtime
    return Baseline(path, label, compiled, spec, spec.parameters, resized_to(spec))


def build_counterpart(name: str, library: str, arguments: Mapping[str, Any] = {}) -> Baseline:
    """Return another library's randomly initialised network that computes the maps of a backbone, in eager mode.

    Raises:
        OptionError: an unknown library.
        MismatchError: the library has no such network, or its feature extractor returns other maps.
    """
    if library not in LIBRARIES:
        raise OptionError(
            f"there is nothing to compare with of {library!r}; libraries are {', '.join(LIBRARIES)}"
            f"{did_you_mean(library, LIBRARIES)}"
        )
    spec: Any = registry.spec(name, features_only=True, **arguments)
    label = format_options(name, {option: value for option, value in arguments.items() if option != "taps"})
    try:
        layout = layout_for(spec, library)
    except MismatchError:
        layout = None
    if layout is None or not layout.architecture:
        raise MismatchError(f"{library} has no network that is {label}; it is measured without")
    # The libraries return the last maps of a resolution only.
    model = LIBRARIES[library](layout, spec).eval() if set(spec.taps) <= set(LEVELS) else None
    if model is None or _map_shapes(model, spec) != list(spec.tap_shapes(MAP_SIDE, MAP_SIDE).values()):
        raise MismatchError(
            f"{layout.architecture} of {library} does not put out {', '.join(spec.taps)} of {label}; it is measured "
            "without"
        )
    return _baseline(name, library, model, model, arguments)


class TimmMaps(nn.Module):
    """timm's maps where its feature extractors lack the last one, behind all blocks, as in MobileNetV2."""

    def __init__(self, network: Any, indices: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.indices = list(indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of images (N, C, H, W), the last one in place of that before it."""
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
        # Blocks are children of torchvision's `features`: "features.16.0.weight" is of the block "features.16".
        blocks[".".join(theirs.split(".")[:2])] = address
    extractor: nn.Module = create_feature_extractor(network, blocks)
    return extractor


LIBRARIES: Mapping[str, Callable[[Layout, BackboneSpec], nn.Module]] = {
    "timm": _build_timm,
    "torchvision": _build_torchvision,
}
"""Library → function that builds its network for a layout, with the maps of a spec."""


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
    """Time networks on the same images, interleaved, with PyTorch's current number of threads.

    Ratios are to the first network. `done` is called after each call of each round, `WARM_UP` more than the timed ones.
    """
    # Counts first, since a network that cannot be counted at a size cannot be timed.
    counted = [(setting, [(b, b.macs(setting.size)) for b in baselines]) for setting in settings]
    limit = measure_limit()
    timed = []
    for setting, counts in counted:
        channels = {baseline.channels for baseline in baselines}
        images = {count: torch.randn(setting.batch, count, *setting.size) for count in channels}
        runs = {baseline: partial(baseline.run, images[baseline.channels]) for baseline in baselines}
        timings = time_interleaved(runs, rounds, WARM_UP, PAUSE, done)
        timed += [(setting, baseline, macs, timings[baseline]) for baseline, macs in counts]
    # The machine may have been busy at the beginning.
    limit = max(limit, measure_limit())
    measurements = [Measurement(b.name, b.by, setting, b.parameters, n, t, limit) for setting, b, n, t in timed]
    return Comparison(this_machine(), limit, rounds, measurements)


def this_machine() -> Machine:
    """Return the machine of this process, with PyTorch's current number of threads."""
    versions = {"featuretap": __version__, "python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return Machine(processor_name(), available_cores(), torch.get_num_threads(), versions)


@contextmanager
def set_torch_threads(count: int | None) -> Iterator[int]:
    """Set PyTorch's number of threads within the context unless it is None, and yield it."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield count or before
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def measure_limit(repeats: int = 30) -> float:
    """Return the maximum float32 multiply-adds a second in matrix multiplication, with PyTorch's current threads.

    Convolutions are not faster, so that a network's multiply-adds divided by it are its minimum seconds.
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
