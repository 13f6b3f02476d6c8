"""Heads learn. This is a much smaller version of `benchmarks/learning.py`, which measures how well they learn."""

import logging
from dataclasses import replace

import pytest
import torch

from benchmarks import learning
from benchmarks.shapes import TRAINING, examples

SMALL = {
    "ssdlite": {"size": 96, "freeze": "C3"},
    "retinanet": {**learning.PYRAMID, "min_size": 96, "max_size": 96, "freeze": "C3"},
    "lraspp": {"freeze": "C3"},
}


def test_the_same_seed_draws_the_same_shapes() -> None:
    one, two = examples(3, 64, 5, TRAINING[:2]), examples(3, 64, 5, TRAINING[:2])
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.mask, b.mask)
        assert all(torch.equal(a.target[key], b.target[key]) for key in a.target)
    assert not torch.equal(one[0].image, examples(1, 64, 6, TRAINING[:2])[0].image)


def test_boxes_enclose_what_is_labelled() -> None:
    for example in examples(5, 64, 0, TRAINING[:2]):
        outside = example.mask.clone()
        for (left, top, right, bottom), label in zip(
            example.target["boxes"].int().tolist(), example.target["labels"].tolist(), strict=True
        ):
            assert (example.mask[top:bottom, left:right] == label).any()
            outside[top:bottom, left:right] = 0
        assert not outside.any()
        assert set(example.mask.unique().tolist()) == {0, *example.target["labels"].tolist()}


@pytest.mark.parametrize("head", list(SMALL))
def test_a_head_overfits_a_few_images(head: str, caplog: pytest.LogCaptureFixture) -> None:
    """The loss on a dozen images falls, and the score rises above that of the untrained model."""
    caplog.set_level(logging.ERROR, "featuretap")
    usual = next(recipe for recipe in learning.RECIPES if recipe.head == head)
    recipe = replace(usual, steps=40, batch=6, options=SMALL[head])
    shown = examples(12, 96, 0, TRAINING[:2])
    model = recipe.build()
    (measure, before), *_ = learning.scores(recipe, model, shown).items()
    losses = list(learning.train(recipe, model, shown))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert learning.scores(recipe, model, shown)[measure] > before + 0.05
