"""Speed of feature extraction with sessions, PyTorch and Ray: `make bench-extract`.

First, a session and PyTorch are compared. Then PyTorch extracts MobileNetV2's pooled C3 and C5 from 2,000 JPEG crops of
scikit-image's photographs (one of them corrupt), resized to 128×128 pixels: for increasing numbers of images, on Ray,
with several batch sizes, and with a worker process that reads images. Times include starting the worker and Ray, but
not importing torch.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import nn

from benchmarks.results import milliseconds, section, table, timed
from benchmarks.sessions import cost_of
from featuretap import registry
from featuretap.support.image_files import ImageFile, list_images
from featuretap.support.timing import Timing
from featuretap.workflows.extraction.computing import Extractor
from featuretap.workflows.extraction.job import Job
from featuretap.workflows.extraction.opening import open_extractor
from featuretap.workflows.extraction.reading import open_features
from featuretap.workflows.extraction.running import Outcome, extract

IMAGES = 2000
SHARD = 128
SIZE = 128
ROUNDS = 5
LARGE_PHOTOGRAPHS = ("astronaut", "coffee", "rocket", "retina", "hubble_deep_field")
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "cat", "retina", "hubble_deep_field")


def make_images(folder: Path, count: int) -> None:
    """Write random crops of photographs as JPEG, with sides of 256 to 512 pixels. The last file is truncated."""
    random = np.random.default_rng(0)
    photographs = [Image.fromarray(np.asarray(getattr(data, name)())[..., :3]) for name in PHOTOGRAPHS]
    for number in range(count):
        photograph = photographs[random.integers(len(photographs))]
        width, height = (int(min(side, random.integers(256, 513))) for side in photograph.size)
        left = int(random.integers(photograph.width - width + 1))
        top = int(random.integers(photograph.height - height + 1))
        path = folder / f"{number:05}.jpg"
        photograph.crop((left, top, left + width, top + height)).save(path, quality=90)
    path.write_bytes(path.read_bytes()[:1000])


def make_photographs(folder: Path) -> None:
    """Write 200 crops of large photographs as JPEG, with 500×375 pixels, a common size in data sets."""
    random = np.random.default_rng(0)
    photographs = [Image.fromarray(np.asarray(getattr(data, name)())[..., :3]) for name in LARGE_PHOTOGRAPHS]
    for number in range(200):
        photograph = photographs[random.integers(len(photographs))]
        left, top = (
            int(random.integers(side - cut + 1)) for side, cut in zip(photograph.size, (500, 375), strict=True)
        )
        photograph.crop((left, top, left + 500, top + 375)).save(folder / f"{number:03}.jpg", quality=90)


class Bench:
    """Runs extractions of the first images, each into a new folder."""

    def __init__(self, folder: Path, images: Sequence[ImageFile], extractor: Extractor) -> None:
        self.folder = Path(mkdtemp(dir=folder))
        self.images = images
        self.extractor = extractor
        self.runs = 0

    def run(
        self, count: int, *, batch_size: int | None = None, workers: int = 0, on_ray: bool = False
    ) -> tuple[Path, Outcome]:
        """Extract features of images into a new folder.

        Args:
            count: number of images.
            batch_size: images per batch, or None for the default.
            workers: number of worker processes.
            on_ray: whether to run on Ray.

        Returns:
            The folder and the outcome.
        """
        self.runs += 1
        out = self.folder / f"features-{self.runs}"
        job = Job(tuple(self.images[:count]), self.extractor.shapes(True), True, "float32", "safetensors", SHARD, out)
        return out, extract(job, self.extractor, batch_size=batch_size, workers=workers, on_ray=on_ray)


def sessions() -> Iterator[str]:
    """Yield tables of a session and PyTorch: images per second, and CPU time and memory of complete processes."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        make_photographs(folder / "images")
        images = list_images([folder / "images"])
        for network, model in {
            "mobilenet_v2": registry.build("mobilenet_v2", pretrained=True),
            "mobilenet_v3_large": _with_statistics(registry.build("mobilenet_v3_large")),
        }.items():
            file = registry.save(model, folder / f"{network}.safetensors")
            yield _rates(network, folder, images, file)
            yield _costs(network, folder, file)


def _with_statistics(model: nn.Module) -> nn.Module:
    """Return a model with batch-norm statistics of random images: huge or tiny activations would slow PyTorch down."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.inference_mode():
        model.train()(torch.randn(16, 3, 224, 224))
    return model.eval()


def _rates(network: str, folder: Path, images: Sequence[ImageFile], file: Path) -> str:
    open_file = partial(open_extractor, None, str(file), ("C5",))
    module, session = (Bench(folder, images, open_file(use_torch=use_torch)) for use_torch in (True, False))
    contenders: dict[str, Callable[[], object]] = {
        f"{label}, batches of {size}": partial(bench.run, len(images), batch_size=size)
        for label, bench, size in (("PyTorch", module, 32), ("session", session, 32), ("session", session, 4))
    }
    timings = timed(contenders, ROUNDS, warm_up=1, pause=0)
    return section(
        f"Extraction: {len(images)} JPEG images of 500×375 pixels, pooled C5 of {network}",
        f"One process, including decoding, resizing and writing. {torch.get_num_threads()} threads, {ROUNDS} rounds.",
        _images_a_second(timings, len(images)),
    )


def _images_a_second(timings: dict[str, Timing], images: int) -> str:
    rows = []
    for name, timing in timings.items():
        speeds = [1 / ratio for ratio in (timing.ratio, *reversed(timing.ratio_quartiles))]
        rates = [images / seconds for seconds in (timing.median, *reversed(timing.quartiles))]
        cells = [cell for median_, low, high in (rates, speeds) for cell in (f"{median_:.1f}", f"{low:.1f}–{high:.1f}")]
        rows.append([name, *cells])
    return table(["", "images/s", "quartiles", "speed", "quartiles of the speed"], rows)


def _costs(network: str, folder: Path, file: Path) -> str:
    command = [
        sys.executable,
        "-m",
        "featuretap.command_line",
        "extract",
        str(folder / "images"),
        "--weights",
        str(file),
    ]
    rows = []
    for label, options in {"`featuretap extract --torch`": ["--torch"], "`featuretap extract`": []}.items():
        measured = []
        for turn in range(3):
            out = folder / f"process-{network}-{len(rows)}-{turn}"
            measured.append(cost_of([*command, "--pool", "--out", str(out), *options]))
        cpu, memory = (median(getattr(cost, key) for cost in measured) for key in ("seconds", "memory"))
        rows.append([label, f"{cpu:.1f}", f"{memory:.0f}"])
    return section(
        f"Extraction: complete processes, {network}",
        "The same images. CPU time (user and system) and peak memory; medians of 3.",
        table(["", "CPU s", "peak MiB"], rows),
    )


def print_rate(bench: Bench, count: int, **how: int) -> tuple[Path, Outcome]:
    """Run once, print seconds and images per second, and return the folder and the outcome."""
    begun = time.perf_counter()
    ran = bench.run(count, **how)
    seconds = time.perf_counter() - begun
    print(f"  {count:5} images  {seconds:7.1f} s  {count / seconds:6.1f} images/s", flush=True)
    return ran


def print_difference(alone: Path, on_ray: Path) -> None:
    """Print the maximum difference between the features of two runs, and whether their files are identical."""
    one, other = open_features(alone), open_features(on_ray)
    assert one.names == other.names
    difference = max(float(np.abs(one.tap(address) - other.tap(address)).max()) for address in one.taps)
    files = [shard["file"] for shard in one.manifest["shards"]]
    same = all((alone / file).read_bytes() == (on_ray / file).read_bytes() for file in files)
    print(f"\n  {len(one)} rows each, maximum difference {difference:.1e}, identical files: {same}")


def main(count: int = IMAGES) -> None:
    """Run all measurements with `count` images."""
    for text in sessions():
        assert text
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        make_images(folder / "images", count)
        extractor = open_extractor("mobilenet_v2", "default", ("C3", "C5"), (SIZE, SIZE), use_torch=True)
        bench = Bench(folder, list_images([folder / "images"]), extractor)
        bench.run(min(count, SHARD))

        print("\nincreasing numbers of images, in this process, batches of 32")
        for part in (8, 4, 2, 1):
            alone, outcome = print_rate(bench, count // part)
        print("\nthe same on Ray, including its start")
        for part in (4, 2, 1):
            on_ray, outcome_on_ray = print_rate(bench, count // part, on_ray=True)
        print_difference(alone, on_ray)
        for place, bad in (("in this process", outcome.bad), ("on Ray", outcome_on_ray.bad)):
            print(f"  unreadable images {place}: {'; '.join(f'{image}: {reason}' for image, reason in bad)}")

        few = count // 16
        runs = {f"{size} images": lambda size=size: bench.run(few, batch_size=size) for size in (32, 1, 8)}  # type: ignore[misc]
        section(f"{few} images, by batch size", "Medians of 3 rounds.", milliseconds(timed(runs, 3, warm_up=0)))
        print("\nwith a worker process that reads images, including its start")
        print_rate(bench, count // 4, workers=1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
