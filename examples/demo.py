"""The main job on a real photograph, offline: what is in the picture, and what the backbone sees of it.

Run by `make demo`, which installs the photograph (scikit-image) and torchvision's official MobileNetV2 weights.
"""

from pathlib import Path

from PIL import Image
from skimage import data

from featuretap.command_line import main

FOLDER = Path("demo")


def run(*arguments: object) -> None:
    """Run one command line as a user would type it, and show it."""
    words = [str(argument) for argument in arguments]
    print("$ featuretap", *words, flush=True)
    try:
        main(words)
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    photograph, picture = FOLDER / "cat.png", FOLDER / "cat-taps.png"
    Image.fromarray(data.chelsea()).save(photograph)
    run("predict", photograph, "--model", "mobilenet_v2")
    run("taps", photograph, "--model", "mobilenet_v2", "--out", picture)
    print(f"The picture of the taps is at {picture.resolve()}")
