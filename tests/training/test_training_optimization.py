"""Parameter groups, and the learning rate from the first update to the last."""

from typing import Any

import pytest
import torch

from featuretap.registry import Registry
from featuretap.workflows.training.configuration import Configuration
from featuretap.workflows.training.optimization import (
    Schedule,
    learning_rate,
    make_optimizer,
    make_schedule,
    set_norm_momentum,
)

UPDATES = 10


def configuration(**settings: Any) -> Configuration:
    return Configuration(**{"data": "digits", "lr": 0.1, "weight_decay": 0.05, **settings})


def rates(schedule: Schedule, optimizer: torch.optim.Optimizer, scores: list[float]) -> list[float]:
    """Return the learning rate of every update, given the score after each epoch."""
    seen = []
    for score in scores:
        for _ in range(UPDATES):
            seen.append(learning_rate(optimizer))
            optimizer.step()
            schedule.after_update()
        schedule.after_epoch(score)
    return seen


def scheduled(**settings: Any) -> tuple[Schedule, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    return make_schedule(optimizer, configuration(**settings), UPDATES), optimizer


def test_norms_and_biases_do_not_decay_and_every_parameter_is_in_one_group(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small", num_classes=3)
    groups = make_optimizer(model, configuration()).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decays) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.05 if parameter.ndim > 1 else 0.0), name


@pytest.mark.parametrize("name", ["mobilenet_v2", "timm/mobilenetv3_small_050"])
def test_layer_decay_lowers_the_learning_rate_of_earlier_levels(name: str) -> None:
    model = Registry().build(name, head="classification", num_classes=3)
    groups = make_optimizer(model, configuration(layer_decay=0.5)).param_groups
    found = {id(p): group["lr"] for group in groups for p in group["params"]}
    stages = {f"backbone.stages.C{level}.": 0.1 * 0.5 ** (6 - level) for level in range(1, 6)}
    expected = {"head.": 0.1, **(stages if name == "mobilenet_v2" else {"backbone.": 0.05})}
    for parameter_name, parameter in model.named_parameters():
        (rate,) = [rate for beginning, rate in expected.items() if parameter_name.startswith(beginning)]
        assert found[id(parameter)] == pytest.approx(rate), parameter_name


@pytest.mark.parametrize(
    ("updates", "momentum", "expected", "changed"),
    [
        (1, None, 0.1, (0.01, 0.1)),
        (100, None, 0.1, (0.01, 0.1)),
        (400, None, 0.025, (0.01, 0.025)),
        (1000, None, 0.01, None),
        (10**6, None, 0.01, None),
        (100, 0.01, 0.01, None),
        (10**6, 0.3, 0.3, (0.01, 0.3)),
    ],
)
def test_norms_average_over_a_tenth_of_the_run_at_most(
    registry: Registry,
    updates: int,
    momentum: float | None,
    expected: float,
    changed: tuple[float, float] | None,
) -> None:
    model = registry.build("mobilenet_v3_small", features_only=True)
    assert set_norm_momentum(model, momentum, updates) == (changed and pytest.approx(changed))
    momenta = {norm.momentum for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm2d)}
    assert list(momenta) == pytest.approx([expected])


def test_every_kind_of_norm_keeps_a_higher_momentum_and_an_equal_average(registry: Registry) -> None:
    model = torch.nn.Sequential(
        torch.nn.BatchNorm2d(2, momentum=0.03), torch.nn.BatchNorm1d(2, momentum=0.2), torch.nn.SyncBatchNorm(2)
    )
    model.append(torch.nn.BatchNorm2d(2, momentum=None))
    assert set_norm_momentum(model, None, updates=50) == (0.03, 0.1)
    assert [norm.momentum for norm in model] == [0.1, 0.2, 0.1, None]
    assert set_norm_momentum(registry.build("mobilenet_v2"), None, updates=50) is None


def test_cosine_rises_to_the_highest_rate_and_falls_to_nothing() -> None:
    schedule, optimizer = scheduled(epochs=5, warmup_epochs=1.0)
    seen = rates(schedule, optimizer, [0.0] * 5)
    assert seen[0] == pytest.approx(0.1 * 1e-3)
    assert seen[5] == pytest.approx(0.1 * (1e-3 + 0.999 / 2))
    assert seen[10] == pytest.approx(0.1)
    assert seen[30] == pytest.approx(0.05)
    assert seen[:11] == sorted(seen[:11])
    assert seen[10:] == sorted(seen[10:], reverse=True)
    assert learning_rate(optimizer) == pytest.approx(0)


def test_without_warmup_the_first_update_has_the_full_rate() -> None:
    for kind in ("cosine", "plateau"):
        schedule, optimizer = scheduled(epochs=2, warmup_epochs=0.0, schedule=kind)
        assert rates(schedule, optimizer, [0.0])[0] == pytest.approx(0.1), kind


def test_a_plateau_divides_the_rate_by_ten_after_warmup() -> None:
    schedule, optimizer = scheduled(epochs=9, warmup_epochs=2.0, schedule="plateau", patience=1)
    seen = rates(schedule, optimizer, [0.5, 0.4, 0.6, 0.6, 0.6, 0.7, 0.7, 0.7, 0.7])
    by_epoch = seen[::UPDATES]
    assert by_epoch[0] == pytest.approx(1e-4)
    assert by_epoch[1] == pytest.approx(0.1 * (1e-3 + 0.999 / 2))
    assert by_epoch[2:] == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001])


@pytest.mark.parametrize("kind", ["cosine", "plateau"])
def test_a_schedule_resumes_from_its_state(kind: str) -> None:
    scores = [0.5, 0.5, 0.5, 0.5, 0.6, 0.6]
    settings: dict[str, Any] = {"epochs": 6, "schedule": kind, "patience": 0}
    schedule, optimizer = scheduled(**settings)
    whole = rates(schedule, optimizer, scores)
    schedule, optimizer = scheduled(**settings)
    first = rates(schedule, optimizer, scores[:3])
    states = (schedule.state_dict(), optimizer.state_dict())
    schedule, optimizer = scheduled(**settings)
    optimizer.load_state_dict(states[1])
    schedule.load_state_dict(states[0])
    assert first + rates(schedule, optimizer, scores[3:]) == whole


def test_a_schedule_resumed_with_more_epochs_follows_the_longer_schedule() -> None:
    schedule, optimizer = scheduled(epochs=3, warmup_epochs=0.0)
    rates(schedule, optimizer, [0.0] * 3)
    states = (schedule.state_dict(), optimizer.state_dict())
    assert learning_rate(optimizer) == pytest.approx(0)
    longer, optimizer = scheduled(epochs=6, warmup_epochs=0.0)
    whole, other = scheduled(epochs=6, warmup_epochs=0.0)
    optimizer.load_state_dict(states[1])
    longer.load_state_dict(states[0])
    assert rates(longer, optimizer, [0.0] * 3) == pytest.approx(rates(whole, other, [0.0] * 6)[3 * UPDATES :])
