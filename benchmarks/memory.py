"""Peak memory of processes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.networks import NAME
from benchmarks.results import section, table
from featuretap import registry

__all__ = ["memory"]

LISTED = {
    "`timm.list_models()`": "import timm; timm.list_models()",
    "`registry.list_backbones()`": "from featuretap import registry; registry.list_backbones()",
}

# The code that a user of each library has to write, without further imports.
BUILT = {
    "timm": "import timm; model = timm.create_model('mobilenetv3_large_100', features_only=True).eval()",
    "torchvision": "from torchvision.models import mobilenet_v3_large\n"
    "from torchvision.models.feature_extraction import create_feature_extractor\n"
    "maps = ['features.1', 'features.3', 'features.6', 'features.12', 'features.16']\n"
    "model = create_feature_extractor(mobilenet_v3_large(), maps).eval()",
    "featuretap": f"from featuretap import registry; model = registry.build({NAME!r}, features_only=True).eval()",
}
OPENED = "from featuretap import registry; model = registry.compile({path!r})"

RUN = "\nimport torch\nwith torch.inference_mode(): model(torch.zeros(1, 3, 1024, 1024))"
# getrusage would also count the memory of the parent process at the time of the fork.
PEAK = "\nprint(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
REPEATS = 3


def memory() -> Iterator[str]:
    """Yield a table of processes that list models, build a model, and run it on one large image."""
    with TemporaryDirectory() as folder:
        path = registry.export(registry.build(NAME, features_only=True), Path(folder) / "model.onnx")
        codes = {**BUILT, "featuretap, onnxruntime, from a file": OPENED.format(path=str(path))}
        rows = [[name, _peak(code), _peak(code + RUN)] for name, code in codes.items()]
    rows += [[name, _peak(code), ""] for name, code in {**LISTED, "`import torch`": "import torch"}.items()]
    yield section(
        "Peak memory",
        f"Peak memory of a process in MiB, after building {NAME} with C1 to C5 (or after the named call), and after "
        f"running one image of 1024×1024 pixels. Medians of {REPEATS} processes.",
        table(["", "built", "1 × 3 × 1024 × 1024"], rows),
    )


def _peak(code: str) -> str:
    """Return the median peak memory in MiB. Linux reports KiB."""

    def once() -> float:
        ran = subprocess.run([sys.executable, "-c", code + PEAK], check=True, capture_output=True, text=True)
        return int(ran.stdout.splitlines()[-1]) / 1024

    return f"{median(once() for _ in range(REPEATS)):.0f}"
