"""Offline predictions with real weights: classify a cat, detect people, draw feature maps and run an exported model.

Run by `make demo`, which installs the photographs (scikit-image) and the weights: torchvision's MobileNetV2, and a
detector of people that was trained in TensorFlow. `hero-wide.jpg` and `hero-narrow.jpg` are the pictures of the README
and of the documentation's first page; copy them to `docs/images` after a change.
"""

from dataclasses import replace
from pathlib import Path

from PIL import Image
from skimage import data

from featuretap.command_line import main
from featuretap.support.images import read_image
from featuretap.workflows.inference.feature_maps import compute_maps, draw_panels, reduce_to_colors
from featuretap.workflows.inference.opening import open_backbone, open_predictor
from featuretap.workflows.inference.predicting import predict_images
from featuretap.workflows.inference.predictions import BoxPrediction, draw_prediction

FOLDER = Path("demo")
PHOTOGRAPHS = {"cat": data.chelsea, "astronaut": data.astronaut, "camera": data.camera}
DETECTOR = ("mobilenet_v2", "ssdlite300_person")
TAPS = ("C1", "C2", "C3", "C4", "C4.expansion", "C5")

MARGIN = 16
"""Pixels around the panels of a page."""


def run(*arguments: object) -> None:
    """Run one command line as a user would type it, and show it."""
    words = [str(argument) for argument in arguments]
    print("\n$ featuretap", *words, flush=True)
    try:
        main(words)
    except SystemExit as end:
        if end.code:
            raise


def draw_heroes(photograph: Image.Image) -> None:
    """Draw the boxes of a photograph and the maps of the detector's backbone, for wide and for narrow screens."""
    detector = open_predictor(*DETECTOR, False)
    (found,) = predict_images(detector, [photograph])
    assert isinstance(found, BoxPrediction)
    backbone = open_backbone(*DETECTOR, TAPS, False)
    _, maps = compute_maps(photograph, backbone, (384, 384))
    panels = [
        (f"{name}\n{len(feature)} channels,{{}}stride {backbone.taps[name].stride}", reduce_to_colors(feature))
        for name, feature in maps.items()
    ]

    def draw_boxes(side: int) -> Image.Image:
        resized = photograph.resize((side, side), Image.Resampling.LANCZOS)
        scaled = replace(found, boxes=found.boxes * (side / photograph.width))
        return draw_prediction(resized, scaled, detector.description, text_size=30)

    taps = draw_panels([(title.format(" "), colors) for title, colors in panels], 1, width=265, text_size=23)
    boxes = draw_boxes(taps.height - 2 * MARGIN)
    wide = Image.new("RGB", (boxes.width + MARGIN + taps.width, taps.height), "white")
    wide.paste(boxes, (MARGIN, MARGIN))
    wide.paste(taps, (MARGIN + boxes.width, 0))
    wide.save(FOLDER / "hero-wide.jpg", quality=80)

    taps = draw_panels([(title.format("\n"), colors) for title, colors in panels], 1, width=218, text_size=25)
    boxes = draw_boxes(taps.width - 2 * MARGIN)
    narrow = Image.new("RGB", (taps.width, MARGIN + boxes.height + taps.height), "white")
    narrow.paste(boxes, (MARGIN, MARGIN))
    narrow.paste(taps, (0, MARGIN + boxes.height))
    narrow.save(FOLDER / "hero-narrow.jpg", quality=80)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, photograph in PHOTOGRAPHS.items():
        Image.fromarray(photograph()).save(FOLDER / f"{name}.png")
    cat, *people = (FOLDER / f"{name}.png" for name in PHOTOGRAPHS)
    run("predict", cat, "--model", "mobilenet_v2")
    run("taps", cat, "--model", "mobilenet_v2", "--out", FOLDER / "cat-taps.png")
    model, weights = DETECTOR
    run("predict", *people, "--model", model, "--weights", weights, "--out", FOLDER / "people")
    run("taps", people[0], "--model", model, "--weights", weights, "--out", FOLDER / "astronaut-taps.png")
    # The exported file needs neither PyTorch nor the weights.
    run("export", model, "--weights", weights, FOLDER / "people.onnx")
    run("predict", *people, "--weights", FOLDER / "people.onnx")
    draw_heroes(read_image(people[0]))
    print(f"\nThe pictures are in {FOLDER.resolve()}; hero-wide.jpg shows a person's box next to the taps")
