"""From feature rows to raw outputs: batching and the cache of encodings change nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.data.batch import Texts, Tokenizer
from models.data.features import FeatureConfig, Features
from models.data.stats import Stats
from models.nets import encodings
from models.nets.encodings import Encodings
from models.nets.heads import expected_amount
from models.nets.int8 import exact
from models.nets.network import Network
from models.scoring import predict
from models.scoring.predict import Predictor

Raw = dict[str, NDArray[np.float64]]


INEXACT = pytest.mark.skipif(not exact(), reason="this processor adds in too few bits")


@pytest.fixture(params=["fp32", pytest.param("int8", marks=INEXACT)])
def predictor(
    make_network: Callable[..., Network],
    stats: Stats,
    tokenizer: Tokenizer,
    feature_config: FeatureConfig,
    request: pytest.FixtureRequest,
) -> Predictor:
    """A new one, nothing encoded yet."""
    own = make_network(), stats, tokenizer, feature_config.max_tokens
    return Predictor(*own, request.param)


def part(known: Features, rows: Sequence[int]) -> Features:
    return replace(known, frame=known.frame[list(rows)])


def assert_equal(one: Raw, two: Raw, atol: float = 1e-6) -> None:
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert np.allclose(values, two[name], rtol=1e-6, atol=atol), name


def test_raw_values_are_logits_and_expected_amounts(predictor: Predictor, known: Features) -> None:
    raw = predictor.raw(known)
    assert {name: v.dtype for name, v in raw.items()} == dict.fromkeys(raw, np.dtype("f8"))
    assert [len(v) for v in raw.values()] == [known.frame.height] * 3
    (encoded,) = predictor.encode(known)
    with torch.no_grad():
        outputs = predictor.network.fuse(encoded.vectors_BMD, encoded.known_BM)
    assert np.allclose(raw["fraud"], outputs.tasks["fraud"].numpy())
    amounts = expected_amount(outputs.tasks["spend"], predictor.stats.targets["spend"])
    assert np.allclose(raw["spend"], amounts.numpy())
    assert (raw["spend"] > 0).all()


@pytest.mark.parametrize("size", [1, 7, 96])
def test_the_size_of_a_batch_changes_nothing(
    predictor: Predictor, known: Features, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predictor.raw(known)
    monkeypatch.setattr(predict, "ROWS", size)
    assert next(len(e.batch) for e in predictor.encode(known)) == size
    assert_equal(whole, predictor.raw(known))


def test_the_order_of_rows_changes_nothing(
    predictor: Predictor, known: Features, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(known.frame.height)
    straight = predictor.raw(known)
    permuted = predictor.raw(part(known, order.tolist()))
    assert_equal({name: values[order] for name, values in straight.items()}, permuted)


def test_what_was_encoded_before_changes_nothing(predictor: Predictor, known: Features) -> None:
    alone = predictor.raw(part(known, range(40, 50)))
    predictor._encodings = Encodings()
    predictor.raw(known)
    assert_equal(alone, predictor.raw(part(known, range(40, 50))))


def test_a_text_is_encoded_once(
    predictor: Predictor, known: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = predictor.network.text.encode

    def counted(texts: Texts) -> torch.Tensor:
        encoded.extend(texts.strings)
        return encode(texts)

    monkeypatch.setattr(predictor.network.text, "encode", counted)
    predictor.raw(known)
    predictor.raw(known)
    distinct = set(known.frame["texts"].explode().drop_nulls())
    assert sorted(encoded) == sorted(distinct) and len(distinct) > 20


def test_a_full_cache_is_emptied_and_changes_nothing(
    predictor: Predictor, known: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predictor.raw(known)
    predictor._encodings = Encodings()
    monkeypatch.setattr(encodings, "MOST", 12)
    slices = [range(i, i + 4) for i in range(0, known.frame.height, 4)]
    parts = []
    for rows in slices:
        parts.append(predictor.raw(part(known, rows)))
        assert len(predictor._encodings) <= 12
    joined = {name: np.concatenate([p[name] for p in parts]) for name in whole}
    assert_equal(whole, joined)


def test_no_rows_give_no_values(predictor: Predictor, known: Features) -> None:
    raw = predictor.raw(part(known, []))
    assert {name: (v.shape, v.dtype) for name, v in raw.items()} == dict.fromkeys(
        ("default", "fraud", "spend"), ((0,), np.dtype("f8"))
    )


def test_users_who_never_wrote(predictor: Predictor, known: Features) -> None:
    silent = known.frame["texts"].list.len() == 0
    rows = silent.arg_true().to_list()
    assert len(rows) > 1
    whole = predictor.raw(known)
    assert_equal({n: v[rows] for n, v in whole.items()}, predictor.raw(part(known, rows)))


def test_the_network_is_put_in_evaluation_mode(predictor: Predictor) -> None:
    assert not any(module.training for module in predictor.network.modules())
