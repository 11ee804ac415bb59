"""The network as a whole: each row for itself, every modality optional but the tabular one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from models.data.batch import Batch, Tokenizer, make_batch
from models.data.features import Features
from models.data.stats import Stats
from models.nets.fusion import MODALITIES
from models.nets.network import Network, NetworkConfig, Outputs
from models.nets.text import TextConfig

Take = Callable[[Batch, Sequence[int]], Batch]


@pytest.fixture(scope="module")
def network(make_network: Callable[..., Network]) -> Network:
    return make_network().eval()


def run(network: Network, batch: Batch) -> Outputs:
    with torch.no_grad():
        outputs: Outputs = network(batch)
    return outputs


def assert_close(one: Outputs, two: Outputs, atol: float) -> None:
    assert one.tasks.keys() == two.tasks.keys()
    for name, output in one.tasks.items():
        assert torch.allclose(output, two.tasks[name], atol=atol, rtol=0), name
    assert torch.allclose(one.weight_BM, two.weight_BM, atol=atol, rtol=0)


def test_every_task_and_every_weight_is_answered(network: Network, batch: Batch) -> None:
    outputs = run(network, batch)
    rows = len(batch)
    assert {name: tuple(o.shape) for name, o in outputs.tasks.items()} == {
        "default": (rows,),
        "fraud": (rows,),
        "spend": (rows, 3),
    }
    assert all(torch.isfinite(o).all() for o in outputs.tasks.values())
    assert outputs.weight_BM.shape == (rows, len(MODALITIES))
    assert torch.allclose(outputs.weight_BM.sum(1), torch.ones(rows), atol=1e-6)
    known_BM = torch.stack(
        [
            (batch.text_BT >= 0).any(1),
            (batch.type_BS > 0).any(1),
            torch.ones(rows, dtype=torch.bool),
            batch.tied_B,
        ],
        1,
    )
    assert torch.equal(outputs.weight_BM > 0, known_BM)


def test_permuting_the_rows_permutes_the_outputs(
    network: Network, batch: Batch, take: Take, seed: int
) -> None:
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed)).tolist()
    straight, permuted = run(network, batch), run(network, take(batch, order))
    moved = Outputs({n: o[order] for n, o in straight.tasks.items()}, straight.weight_BM[order])
    assert_close(moved, permuted, 1e-5)
    assert straight.tasks["default"].std() > 1e-4


def test_a_row_alone_is_answered_as_among_many(
    network: Network, known: Features, stats: Stats, tokenizer: Tokenizer, batch: Batch
) -> None:
    """Each row as a batch of its own: its own padding and its own texts."""
    among = run(network, batch)
    for row in range(len(batch)):
        one = replace(known, frame=known.frame.slice(row, 1))
        alone = run(network, make_batch(one, stats, tokenizer, 16))
        expected = Outputs(
            {n: o[row : row + 1] for n, o in among.tasks.items()}, among.weight_BM[row : row + 1]
        )
        assert_close(expected, alone, 1e-5)


def test_an_empty_batch(
    network: Network, known: Features, stats: Stats, tokenizer: Tokenizer
) -> None:
    none = make_batch(replace(known, frame=known.frame.head(0)), stats, tokenizer, 16)
    outputs = run(network, none)
    assert [tuple(o.shape) for o in outputs.tasks.values()] == [(0,), (0,), (0, 3)]
    assert outputs.weight_BM.shape == (0, len(MODALITIES))


def test_labels_do_not_reach_the_outputs(network: Network, batch: Batch) -> None:
    assert batch.labels_BK.shape[1] == 3
    assert_close(
        run(network, batch), run(network, replace(batch, labels_BK=1 - batch.labels_BK)), 0.0
    )


@pytest.mark.parametrize("absent", ["text", "behaviour", "social"])
def test_what_nobody_of_the_fit_role_had_is_left_out(
    make_network: Callable[..., Network], stats: Stats, batch: Batch, absent: str
) -> None:
    """Its tower has learned nothing, so that what it says of users who have it must not count."""
    network = make_network(with_stats=stats.model_copy(update={"absent": (absent,)})).eval()
    whole = make_network().eval()
    whole.load_state_dict(network.state_dict())
    place = MODALITIES.index(absent)
    outputs, all_of_them = run(network, batch), run(whole, batch)
    assert (all_of_them.weight_BM[:, place] > 0).any()
    assert (outputs.weight_BM[:, place] == 0).all()
    has = all_of_them.weight_BM[:, place] > 0
    for name, output in outputs.tasks.items():
        assert torch.equal(output[~has], all_of_them.tasks[name][~has])
        assert not torch.equal(output[has], all_of_them.tasks[name][has])


def test_without_social_columns_the_modality_is_masked_for_everyone(
    make_network: Callable[..., Network], stats: Stats, batch: Batch
) -> None:
    network = make_network(with_stats=stats.model_copy(update={"social": {}})).eval()
    untied = replace(batch, social_BG=batch.social_BG[:, :0], tied_B=torch.zeros_like(batch.tied_B))
    assert network.social is None
    outputs = run(network, untied)
    assert (outputs.weight_BM[:, MODALITIES.index("social")] == 0).all()
    assert torch.allclose(outputs.weight_BM.sum(1), torch.ones(len(batch)), atol=1e-6)
    assert all(torch.isfinite(o).all() for o in outputs.tasks.values())


def bare(batch: Batch) -> Batch:
    """The same rows without text, events, ties and labels."""
    return replace(
        batch,
        type_BS=torch.zeros_like(batch.type_BS),
        text_BT=torch.full_like(batch.text_BT, -1),
        texts=replace(batch.texts, tokens=(), masks=(), strings=()),
        tied_B=torch.zeros_like(batch.tied_B),
        labels_BK=torch.full_like(batch.labels_BK, float("nan")),
    )


def test_users_of_whom_nothing_but_columns_is_known(network: Network, batch: Batch) -> None:
    outputs = run(network, bare(batch))
    only = [float(name == "tabular") for name in MODALITIES]
    assert outputs.weight_BM.tolist() == [only] * len(batch)
    assert all(torch.isfinite(o).all() for o in outputs.tasks.values())


@pytest.mark.parametrize("strip", [False, True])
def test_every_trainable_parameter_has_a_gradient_whatever_is_missing(
    make_network: Callable[..., Network], batch: Batch, strip: bool
) -> None:
    """A distributed run waits for the gradient of every parameter on every rank."""
    network = make_network().train()
    own = bare(batch) if strip else batch
    sums, alone = network.loss(network(own), own)
    (sums[0].sum() + alone).backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_towers_and_fuse_are_the_forward_pass_in_two_steps(network: Network, batch: Batch) -> None:
    with torch.no_grad():
        vectors_BMD, known_BM = network.towers(batch, network.text.encode(batch.texts))
        in_two_steps = network.fuse(vectors_BMD, known_BM)
    assert_close(run(network, batch), in_two_steps, 0.0)


def test_the_weights_are_all_there_is_to_keep(
    make_network: Callable[..., Network], batch: Batch
) -> None:
    one, two = make_network(3).eval(), make_network(4).eval()
    two.load_state_dict(one.state_dict())
    assert_close(run(one, batch), run(two, batch), 0.0)


def test_the_number_of_trainable_layers_reaches_the_encoder(
    make_network: Callable[..., Network], encoder_folder: Path
) -> None:
    text = TextConfig(encoder=str(encoder_folder), trainable_layers=0)
    network = make_network(config=NetworkConfig(width=16, text=text))
    assert not any(p.requires_grad for p in network.text.encoder.parameters())
    assert all(p.requires_grad for p in network.heads.parameters())


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"width": 30, "behaviour": {"encoder": "transformer"}}, "30 is no multiple of 4 heads"),
        ({"width": 4}, "greater than or equal to 8"),
        ({"dropout": 1.0}, "less than 1"),
        ({"depth": 3}, "Extra inputs are not permitted"),
    ],
)
def test_an_impossible_shape_is_refused(bad: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        NetworkConfig.model_validate(bad)
