"""How fast are features extracted, with and without Ray? `make bench-extract`.

2,000 JPEG images are cut from scikit-image's photographs, one of them is made corrupt, and MobileNetV2's pooled C3 and
C5 of whole images, resized to 128×128 pixels, are written to a folder: of more and more images, on Ray, in batches of
several sizes, and with a process that reads images. The times include the start of that process and of Ray, and not
the import of torch.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from skimage import data

from benchmarks.reduced_tail import weights
from benchmarks.results import milliseconds, section, timed
from featuretap.support.image_files import ImageFile, list_images
from featuretap.workflows.extraction.computing import Model, open_extractor
from featuretap.workflows.extraction.job import Job
from featuretap.workflows.extraction.reading import open_features
from featuretap.workflows.extraction.running import Outcome, extract

IMAGES = 2000
SHARD = 128
SIZE = 128
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "cat", "retina", "hubble_deep_field")


def make_images(folder: Path, count: int) -> None:
    """Write random cuts of photographs, 256 to 512 pixels wide and high, as JPEG; the last is cut off in the middle."""
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


class Bench:
    """Runs over the first of the images, each into a new folder."""

    def __init__(self, folder: Path, images: Sequence[ImageFile], model: Model) -> None:
        self.folder = folder
        self.images = images
        self.model = model
        self.runs = 0

    def run(self, count: int, *, batch_size: int = 32, workers: int = 0, on_ray: bool = False) -> tuple[Path, Outcome]:
        """Extract the features of the first `count` images, and return their folder and what was done."""
        self.runs += 1
        out = self.folder / f"features-{self.runs}"
        job = Job(tuple(self.images[:count]), self.model.shapes(True), True, "float32", "safetensors", SHARD, out)
        return out, extract(job, self.model, batch_size=batch_size, workers=workers, on_ray=on_ray)


def print_rate(bench: Bench, count: int, **how: int) -> tuple[Path, Outcome]:
    """Run once, and print seconds and images a second."""
    begun = time.perf_counter()
    ran = bench.run(count, **how)
    seconds = time.perf_counter() - begun
    print(f"  {count:5} images  {seconds:7.1f} s  {count / seconds:6.1f} images/s", flush=True)
    return ran


def print_difference(alone: Path, on_ray: Path) -> None:
    """Print how far features of two runs are apart, and whether their files are the same bytes."""
    one, other = open_features(alone), open_features(on_ray)
    assert one.names == other.names
    difference = max(float(np.abs(one.tap(address) - other.tap(address)).max()) for address in one.taps)
    files = [shard["file"] for shard in one.manifest["shards"]]
    same = all((alone / file).read_bytes() == (on_ray / file).read_bytes() for file in files)
    print(f"\n  {len(one)} rows each, largest difference {difference:.1e}, files equal byte by byte: {same}")


def main(count: int = IMAGES) -> None:
    """Measure with so many images."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        make_images(folder / "images", count)
        model = open_extractor("mobilenet_v2", str(weights()), ("C3", "C5"), (SIZE, SIZE))
        bench = Bench(folder, list_images([folder / "images"]), model)
        bench.run(min(count, SHARD))

        print("\nmore images, in this process, batches of 32")
        for part in (8, 4, 2, 1):
            alone, outcome = print_rate(bench, count // part)
        print("\nthe same on Ray, its start included")
        for part in (4, 2, 1):
            on_ray, outcome_on_ray = print_rate(bench, count // part, on_ray=True)
        print_difference(alone, on_ray)
        for words, bad in (("in this process", outcome.bad), ("on Ray", outcome_on_ray.bad)):
            print(f"  bad images {words}: {'; '.join(f'{image}: {reason}' for image, reason in bad)}")

        few = count // 16
        runs = {f"{size} images": lambda size=size: bench.run(few, batch_size=size) for size in (32, 1, 8)}  # type: ignore[misc]
        section(f"{few} images, by batch size", "Medians of 3 rounds.", milliseconds(timed(runs, 3, warm_up=0)))
        print("\nwith a process that reads images, its start included")
        print_rate(bench, count // 4, workers=1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
