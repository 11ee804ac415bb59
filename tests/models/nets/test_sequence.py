"""The behaviour tower: the order of events counts, padding does not."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import pad

from models.data.batch import Batch
from models.nets.sequence import BehaviourConfig, BehaviourTower

EVENT_FIELDS = ("type_BS", "category_BS", "hour_BS", "weekday_BS", "event_BSX")
WIDTH, MAX_EVENTS = 16, 12


@pytest.fixture(
    params=[
        {},
        {"amounts": "piecewise"},
        {"encoder": "cnn"},
        {"encoder": "gru"},
        {"encoder": "lstm", "layers": 1},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "default",
)
def tower(request: pytest.FixtureRequest) -> BehaviourTower:
    torch.manual_seed(2)
    config = BehaviourConfig.model_validate({"heads": 2, **request.param})
    return BehaviourTower(config, WIDTH, 0.0, types=6, categories=5, max_events=MAX_EVENTS).eval()


def vectors(tower: BehaviourTower, batch: Batch) -> Tensor:
    with torch.no_grad():
        result: Tensor = tower(batch)[0]
    return result


def on_events(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    changed: dict[str, Any] = {name: change(getattr(batch, name)) for name in EVENT_FIELDS}
    return replace(batch, **changed)


def widened(values: Tensor) -> Tensor:
    return pad(values, (0, 0, 0, 9) if values.dim() == 3 else (0, 9))


def no_events(values: Tensor) -> Tensor:
    return torch.zeros_like(values)


def test_what_stands_in_the_padding_changes_nothing(tower: BehaviourTower, batch: Batch) -> None:
    padding_BS = batch.type_BS == 0
    assert padding_BS.any()
    noisy = replace(
        batch,
        category_BS=torch.where(padding_BS, 3, batch.category_BS),
        hour_BS=torch.where(padding_BS, 23, batch.hour_BS),
        weekday_BS=torch.where(padding_BS, 6, batch.weekday_BS),
        event_BSX=torch.where(padding_BS.unsqueeze(-1), 9.0, batch.event_BSX),
    )
    assert torch.equal(vectors(tower, batch), vectors(tower, noisy))


def test_wider_padding_changes_nothing(tower: BehaviourTower, batch: Batch) -> None:
    wider = on_events(batch, widened)
    assert wider.type_BS.shape[1] > MAX_EVENTS
    assert torch.allclose(vectors(tower, batch), vectors(tower, wider), atol=1e-5, rtol=0)


def test_the_order_of_events_matters(tower: BehaviourTower, batch: Batch) -> None:
    """The same events the other way round, each with its own hour, amount and age."""
    counts_B = (batch.type_BS > 0).sum(1)

    def turned(values: Tensor) -> Tensor:
        result = values.clone()
        for row, count in enumerate(counts_B.tolist()):
            result[row, :count] = values[row, :count].flip(0)
        return result

    change_B = (vectors(tower, batch) - vectors(tower, on_events(batch, turned))).abs().amax(1)
    assert (change_B[counts_B > 1] > 1e-3).all()


@pytest.mark.parametrize("field", EVENT_FIELDS)
def test_every_input_of_an_event_matters(tower: BehaviourTower, batch: Batch, field: str) -> None:
    change: dict[str, Callable[[Tensor], Tensor]] = {
        "type_BS": lambda codes: codes % 5 + 1,
        "category_BS": lambda codes: codes % 4 + 1,
        "hour_BS": lambda hours: (hours + 1) % 24,
        "weekday_BS": lambda days: (days + 1) % 7,
        "event_BSX": lambda numbers: numbers + 1,
    }
    has_B = batch.type_BS[:, 0] > 0
    values = getattr(batch, field).clone()
    values[has_B, 0] = change[field](values[has_B, 0])
    moved_BD = vectors(tower, batch) - vectors(tower, replace(batch, **{field: values}))
    assert has_B.any()
    assert torch.equal(moved_BD.abs().amax(1) > 1e-5, has_B)


def test_events_fade_with_their_age(tower: BehaviourTower, batch: Batch) -> None:
    """Also where the embedding of an event does not say how old it is."""
    numbers_BSX = batch.event_BSX.clone()
    numbers_BSX[..., 2] += 0.1
    with torch.no_grad():
        tower.events.numbers.weight[:, 2] = 0
    moved_BD = vectors(tower, batch) - vectors(tower, replace(batch, event_BSX=numbers_BSX))
    assert torch.equal(moved_BD.abs().amax(1) > 1e-5, batch.type_BS[:, 0] > 0)


def test_a_user_without_events_is_finite_and_unknown(tower: BehaviourTower, batch: Batch) -> None:
    none = on_events(batch, lambda values: torch.cat([values[:1] * 0, values[1:]]))
    with torch.no_grad():
        vectors_BD, known_B = tower(none)
    assert vectors_BD.shape == (len(batch), WIDTH)
    assert torch.isfinite(vectors_BD).all()
    assert known_B.tolist() == [False] + [True] * (len(batch) - 1)
    assert torch.equal(vectors_BD[1:], vectors(tower, batch)[1:])


def test_with_no_events_at_all_every_parameter_has_a_gradient(
    tower: BehaviourTower, batch: Batch
) -> None:
    vectors_BD, known_B = tower.train()(on_events(batch, no_events))
    assert not known_B.any()
    vectors_BD.sum().backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_training_and_evaluation_mode_agree_without_dropout(
    tower: BehaviourTower, batch: Batch
) -> None:
    """PyTorch takes a fused path in evaluation mode."""
    calm = vectors(tower, batch)
    assert torch.allclose(calm, vectors(tower.train(), batch), atol=1e-5, rtol=0)


def test_a_user_is_encoded_the_same_alone(
    tower: BehaviourTower, batch: Batch, take: Callable[[Batch, Sequence[int]], Batch]
) -> None:
    together = vectors(tower, batch)
    alone = torch.cat([vectors(tower, take(batch, [row])) for row in range(len(batch))])
    assert torch.allclose(together, alone, atol=1e-5, rtol=0)


def test_an_empty_batch(
    tower: BehaviourTower, batch: Batch, take: Callable[[Batch, Sequence[int]], Batch]
) -> None:
    assert vectors(tower, take(batch, [])).shape == (0, WIDTH)


@pytest.mark.parametrize(
    "bad", [{"layers": 0}, {"heads": 0}, {"encoder": "rnn"}, {"amounts": "log"}, {"kind": "gru"}]
)
def test_impossible_shapes_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BehaviourConfig.model_validate(bad)
