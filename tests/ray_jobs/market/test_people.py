import numpy as np
import pytest

from ray_jobs.market.block import Block
from ray_jobs.market.people import ADDRESS, DEVICE, REFERRAL, draw_people, draw_ties
from ray_jobs.market.world import WORLD, SimulateConfig


def test_the_last_block_has_what_is_left() -> None:
    config = SimulateConfig(users=503, seed=1)
    people = draw_people(config, 1, np.random.default_rng(0))
    assert people.size == 3
    assert people.first == 500
    assert people.stress.shape == (3, 10)


def test_one_user_alone() -> None:
    config = SimulateConfig(users=1, seed=1)
    rng = np.random.default_rng(0)
    people = draw_people(config, 0, rng)
    ties = draw_ties(config, people, rng)
    assert sorted(ties.kind.tolist()) == [DEVICE, ADDRESS]


def test_tied_users_are_alike(blocks: list[Block]) -> None:
    stress = []
    for block in blocks:
        ties = block.ties
        shared = (
            (ties.kind == DEVICE) & (ties.other < block.people.size) & (ties.other != ties.user)
        )
        pairs = ties.user[shared], ties.other[shared]
        stress.append(np.stack([block.people.stress[side, 5] for side in pairs]))
    correlation = np.corrcoef(np.concatenate(stress, axis=1))[0, 1]
    assert correlation == pytest.approx(WORLD.people.group_share, abs=0.1)


def test_ties_stay_within_the_block_and_never_to_oneself(blocks: list[Block]) -> None:
    for block in blocks:
        ties, n = block.ties, block.people.size
        assert ties.user.min() >= 0
        assert ties.user.max() < n
        referred = ties.kind == REFERRAL
        assert (ties.other[referred] != ties.user[referred]).all()
        assert (ties.other[referred] < n).all()
        assert (ties.since >= block.people.joined[ties.user]).all()
        keys = np.stack([ties.user, ties.kind, ties.other])
        assert np.unique(keys, axis=1).shape == keys.shape


def test_a_household_lives_in_one_group(block: Block) -> None:
    ties = block.ties
    home = ties.kind == ADDRESS
    households = np.stack([ties.other[home], block.people.group[ties.user[home]]])
    assert len(np.unique(households, axis=1)[0]) == len(np.unique(households[0]))
    assert np.bincount(households[0]).max() <= WORLD.people.household_max


def test_rings_share_a_device(block: Block) -> None:
    ties, people = block.ties, block.people
    ring = (ties.kind == DEVICE) & (ties.other >= people.size)
    assert set(ties.user[ring]) == set(np.flatnonzero(people.ring >= 0))
    sizes = np.bincount(ties.other[ring] - people.size)
    assert sizes.min() >= WORLD.people.ring_min
    assert sizes.max() <= WORLD.people.ring_max


def test_a_few_declare_another_income_later(blocks: list[Block]) -> None:
    changes = np.concatenate([block.people.changes for block in blocks])
    assert changes.mean() == pytest.approx(WORLD.people.income_change_share, abs=0.02)
    for block in blocks:
        people = block.people
        assert (people.income_changed[people.changes] > people.joined[people.changes]).all()


@pytest.mark.parametrize(
    ("language", "low", "high"), [("en", 0, 0), ("zh", 1, 1), ("mixed", 0.3, 0.7)]
)
def test_language(language: str, low: float, high: float) -> None:
    config = SimulateConfig.model_validate({"users": 500, "seed": 1, "language": language})
    share = draw_people(config, 0, np.random.default_rng(0)).chinese.mean()
    assert low <= share <= high
