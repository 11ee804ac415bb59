"""The piecewise-linear encoding: nothing is lost of a score, and edges lie at quantiles."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtri

from models.data.stats import TAIL
from models.nets.piecewise import PiecewiseLinear

MOST = float(ndtri(1 - TAIL))
SCORES = st.lists(st.floats(-MOST, MOST), min_size=1, max_size=20)


@given(SCORES)
def test_the_score_is_the_sum_of_the_bins_it_has_gone_through(scores: list[float]) -> None:
    made = PiecewiseLinear(8)
    score_B = torch.tensor(scores)
    code_BK = made(score_B)
    assert code_BK.shape == (len(scores), 8)
    assert (code_BK >= 0).all() and (code_BK <= 1).all()
    assert (code_BK[:, :-1] >= code_BK[:, 1:]).all()  # a bin is entered when the last is full
    widths_K = torch.from_numpy(np.diff(edges(8)))
    assert torch.allclose(code_BK.double() @ widths_K - MOST, score_B.double(), atol=1e-5)


def edges(bins: int) -> NDArray[np.float64]:
    return np.asarray(ndtri(np.clip(np.linspace(0, 1, bins + 1), TAIL, 1 - TAIL)))


def test_each_bin_holds_the_same_share_of_the_fit_role() -> None:
    shares = (np.arange(100_000) + 0.5) / 100_000
    scores = torch.from_numpy(ndtri(shares).clip(-MOST, MOST))
    inside_BK = PiecewiseLinear(8)(scores)
    partly = ((inside_BK > 1e-6) & (inside_BK < 1 - 1e-6)).double().mean(0)
    assert np.allclose(partly.numpy(), [1 / 8 - TAIL, *[1 / 8] * 6, 1 / 8 - TAIL], atol=1e-3)


def test_beyond_the_ends_nothing_changes() -> None:
    made = PiecewiseLinear(4)
    assert made(torch.tensor([-99.0, -MOST])).abs().max() < 1e-6
    assert torch.allclose(made(torch.tensor([[99.0, MOST]])), torch.ones(1, 2, 4))


def test_it_has_no_weights_to_keep() -> None:
    assert PiecewiseLinear(4).state_dict() == {}
