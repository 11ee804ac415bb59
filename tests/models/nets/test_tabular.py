"""The tabular tower: values, flags of what is missing, categories."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from models.data.batch import Batch
from models.nets.tabular import TabularConfig, TabularTower

WIDTH = 16
Maker = Callable[..., TabularTower]


@pytest.fixture(
    params=[{}, {"numbers": "piecewise"}, {"cross_layers": 2}],
    ids=lambda options: next(iter(options), "default"),
)
def tower_for(request: pytest.FixtureRequest) -> Maker:
    def make(
        batch: Batch, levels: Sequence[int] = (3, 1), kept: Sequence[int] | None = None
    ) -> TabularTower:
        torch.manual_seed(4)
        config, columns = TabularConfig.model_validate(request.param), batch.tabular_BF.shape[1]
        return TabularTower(config, columns, levels, WIDTH, dropout=0.5, kept=kept).eval()

    return make


def vectors(tower: TabularTower, batch: Batch) -> Tensor:
    with torch.no_grad():
        result: Tensor = tower(batch)[0]
    return result


def test_it_is_known_for_everyone(tower_for: Maker, batch: Batch) -> None:
    vectors_BD, known_B = tower_for(batch)(batch)
    assert vectors_BD.shape == (len(batch), WIDTH)
    assert known_B.dtype == torch.bool and known_B.all()


@pytest.mark.parametrize("field", ["tabular_BF", "missing_BF"])
def test_every_column_and_every_missing_flag_matters(
    tower_for: Maker, batch: Batch, field: str
) -> None:
    tower = tower_for(batch)
    plain = vectors(tower, batch)
    for column in range(batch.tabular_BF.shape[1]):
        values = getattr(batch, field).clone()
        values[:, column] -= values[:, column].sign() + 0.5  # inwards: scores are bounded
        changed = vectors(tower, replace(batch, **{field: values}))
        assert ((plain - changed).abs().amax(1) > 1e-4).all(), column


def test_it_sees_the_columns_that_are_kept_and_no_other(tower_for: Maker, batch: Batch) -> None:
    """As a tower of these columns alone would, whose weights are the same."""
    kept = [3, 0, 7]
    tower = tower_for(batch, kept=kept)
    own = replace(batch, tabular_BF=batch.tabular_BF[:, kept], missing_BF=batch.missing_BF[:, kept])
    assert torch.equal(vectors(tower, batch), vectors(tower_for(own), own))
    assert tower.state_dict().keys() == tower_for(own).state_dict().keys()


def test_categories_matter_and_an_unseen_one_has_its_own_place(
    tower_for: Maker, batch: Batch
) -> None:
    tower = tower_for(batch)
    regions = [
        vectors(tower, replace(batch, categorical_BC=torch.full_like(batch.categorical_BC, 0)))
    ]
    for region in (1, 2, 3):
        codes = torch.zeros_like(batch.categorical_BC)
        codes[:, 0] = region
        regions.append(vectors(tower, replace(batch, categorical_BC=codes)))
    assert torch.pdist(torch.stack([r[0] for r in regions])).min() > 1e-3


def test_without_categorical_columns(tower_for: Maker, batch: Batch) -> None:
    plain = replace(batch, categorical_BC=batch.categorical_BC[:, :0])
    assert vectors(tower_for(plain, ()), plain).shape == (len(batch), WIDTH)


def test_dropout_acts_in_training_only(tower_for: Maker, batch: Batch) -> None:
    tower = tower_for(batch)
    assert torch.equal(vectors(tower, batch), vectors(tower, batch))
    assert not torch.equal(vectors(tower.train(), batch), vectors(tower, batch))


def test_empty_and_single_rows(
    tower_for: Maker, batch: Batch, take: Callable[[Batch, Sequence[int]], Batch]
) -> None:
    tower = tower_for(batch)
    assert vectors(tower, take(batch, [])).shape == (0, WIDTH)
    alone = torch.cat([vectors(tower, take(batch, [row])) for row in range(len(batch))])
    assert torch.allclose(alone, vectors(tower, batch), atol=1e-5)


def test_every_parameter_has_a_gradient(tower_for: Maker, batch: Batch) -> None:
    tower = tower_for(batch).train()
    tower(batch)[0].square().sum().backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "bad", [{"numbers": "bins"}, {"cross_layers": -1}, {"cross": 1}, {"keep": 0}]
)
def test_an_impossible_tower_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TabularConfig.model_validate(bad)
