"""CPU time of `featuretap list` with a hundred installed plugins, compared with none: `make bench-plugins`."""

import os
import resource
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from benchmarks.results import milliseconds, section
from featuretap.support.timing import time_interleaved

PLUGINS = 100
ROUNDS = 41

MODULE = """
from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.specs import HS, RE, SE, BackboneSpec, Bneck, Conv

NET = BackboneSpec(
    "manynet_{number}",
    stages=(
        (Conv(3, 16, HS),),
        (Bneck(3, 48, 24, RE), Bneck(3, 72, 24, RE)),
        (Bneck(5, 72, 40, RE, SE), Bneck(5, 120, 40, RE, SE)),
        (Bneck(3, 160, 64, HS), Bneck(3, 192, 64, HS)),
        (Bneck(5, 256, 96, HS, SE), Conv(1, 384, HS)),
    ),
)


@hookimpl
def featuretap_backbones():
    return [NET]
"""


def wheel(folder: Path, number: int) -> Path:
    """Write the wheel of a plugin with one backbone, and return its path."""
    name = f"featuretap_many_{number}"
    about = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    files = {
        f"{name}.py": MODULE.format(number=number),
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: featuretap>=0.0.1\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": f"[featuretap]\nmany_{number} = {name}\n",
    }
    record = "".join(f"{file},,\n" for file in (*files, f"{about}/RECORD"))
    with ZipFile(path, "w") as archive:
        for file, text in {**files, f"{about}/RECORD": record}.items():
            archive.writestr(file, text)
    return path


def environment(folder: Path, plugins: int) -> Path:
    """Create an environment on top of this one, install plugins into it with pip, and return its Python."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
    wheels = [wheel(folder, number) for number in range(plugins)]
    if wheels:
        pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install"]
        subprocess.run([*pip, "--quiet", "--no-deps", "--no-index", *wheels], check=True)
    return python


def listing(python: Path) -> Callable[[], object]:
    """Return a function that runs `featuretap list` in a separate process."""
    command = [python, "-m", "featuretap.command_line", "list"]
    # Let the warm-up write bytecode, as an installation does.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)


def processor_seconds() -> float:
    """Return the CPU time of all finished child processes, which other processes affect less than wall time."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run the measurement and print it."""
    with TemporaryDirectory() as folder:
        contenders = {
            f"{plugins} plugins": listing(environment(Path(folder) / str(plugins), plugins)) for plugins in (0, PLUGINS)
        }
        timings = time_interleaved(contenders, ROUNDS, clock=processor_seconds)
        text = f"CPU time (user and system) of a complete process. {ROUNDS} rounds."
        section("List every backbone, with plugins", text, milliseconds(timings))


if __name__ == "__main__":
    main()
