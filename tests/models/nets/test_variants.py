"""Every variant of the network keeps its promises: rows for themselves, gradients, the artifact."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from models.data.batch import Batch, Tokenizer, make_batch
from models.data.features import Features
from models.data.schema import UserError
from models.data.stats import Stats
from models.nets.fit import FitConfig, Loop, unwrapped
from models.nets.fusion import MODALITIES
from models.nets.network import Network, NetworkConfig
from models.scoring import artifact

Take = Callable[[Batch, Sequence[int]], Batch]
Make = Callable[..., Network]
LOSS = {"positive_weight": "balanced", "focal": 1.0, "smoothing": 0.05}
VARIANTS: dict[str, dict[str, Any]] = {
    "cnn": {"behaviour": {"encoder": "cnn"}},
    "gru": {"behaviour": {"encoder": "gru", "amounts": "piecewise"}},
    "lstm": {"behaviour": {"encoder": "lstm"}},
    "gated": {"fusion": {"kind": "gated"}, "modality_dropout": 0.5},
    "concat": {"fusion": {"kind": "concat"}, "modality_dropout": 0.5},
    "tabular": {"tabular": {"numbers": "piecewise", "cross_layers": 2}},
    "loss": {"loss": {"task_weights": "learned", "binary": {"default": LOSS, "fraud": LOSS}}},
}


@pytest.fixture(params=list(VARIANTS.values()), ids=list(VARIANTS))
def config(request: pytest.FixtureRequest, network_config: NetworkConfig) -> NetworkConfig:
    return NetworkConfig.model_validate(network_config.model_dump() | request.param)


@pytest.fixture
def network(config: NetworkConfig, make_network: Make) -> Network:
    return make_network(config=config)


def test_a_row_alone_is_answered_as_among_many(
    network: Network, known: Features, stats: Stats, tokenizer: Tokenizer, batch: Batch
) -> None:
    with torch.no_grad():
        among = network.eval()(batch)
        for row in range(0, len(batch), 3):
            one = replace(known, frame=known.frame.slice(row, 1))
            alone = network(make_batch(one, stats, tokenizer, 16))
            assert torch.allclose(alone.weight_BM[0], among.weight_BM[row], atol=1e-6)
            for name, output in alone.tasks.items():
                assert torch.allclose(output[0], among.tasks[name][row], atol=1e-5), name


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


@pytest.mark.parametrize("strip", [False, True])
def test_every_trainable_parameter_has_a_gradient_whatever_is_missing(
    network: Network, batch: Batch, strip: bool
) -> None:
    own = bare(batch) if strip else batch
    outputs = network.train()(own)
    alone = network.loss(outputs, own)[1]
    (network.heads.objective(outputs.tasks, own.labels_BK) + alone).backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path}/store"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_rank_of_a_distributed_run_trains_as_a_single_process(
    config: NetworkConfig, make_network: Make, batch: Batch, one_rank: None
) -> None:
    batches = [batch, bare(batch), batch]
    states = []
    for wrap in (unwrapped, DistributedDataParallel):
        fit = FitConfig(epochs=2, learning_rate=5e-3, precision="fp32")
        loop = Loop(make_network(config=config), fit, len(batches), torch.device("cpu"), wrap)
        torch.manual_seed(1)
        loop.run(lambda _: batches, lambda _: [batch], lambda epoch, loop: None)
        states.append(loop.network.state_dict())
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-6), name


def test_an_empty_batch(network: Network, batch: Batch, take: Take) -> None:
    with torch.no_grad():  # PyTorch's attention refuses an empty batch where it learns
        outputs = network.eval()(take(batch, []))
    assert [tuple(o.shape) for o in outputs.tasks.values()] == [(0,), (0,), (0, 3)]
    assert outputs.weight_BM.shape == (0, len(MODALITIES))


def test_it_learns_and_comes_back_from_disk_as_it_was(
    network: Network,
    config: NetworkConfig,
    spec: artifact.ModelSpec,
    tokenizer: Tokenizer,
    make_batches: Callable[[int], list[Batch]],
    tmp_path: Path,
) -> None:
    batches, losses = make_batches(32), list[float]()
    fit = FitConfig(epochs=3, learning_rate=5e-3, precision="fp32")
    loop = Loop(network, fit, len(batches), torch.device("cpu"))
    loop.run(lambda _: batches, lambda _: batches, lambda e, _: losses.append(e.select_loss))
    assert losses[-1] < losses[0]
    path = artifact.save(
        tmp_path, spec.model_copy(update={"network": config}), network.eval(), tokenizer
    )
    loaded = artifact.load(path)
    assert loaded.spec.network == config
    with torch.no_grad():
        before, after = network(batches[0]), loaded.network.eval()(batches[0])
    assert torch.equal(before.weight_BM, after.weight_BM)
    for name, output in before.tasks.items():
        assert torch.equal(output, after.tasks[name]), name


def test_a_withheld_modality_still_learns_by_its_own_loss(
    make_network: Make, network_config: NetworkConfig, batch: Batch
) -> None:
    """Dropout hides it from the fusion of that step, not from the loss of the modalities alone."""
    config = network_config.model_copy(update={"modality_dropout": 0.99})
    network = make_network(config=config).train()
    outputs = network(batch)
    assert outputs.alone is not None
    known_BM = outputs.alone[1]
    heard_BM = outputs.weight_BM > 0
    assert (heard_BM.sum() < known_BM.sum()) and heard_BM.any(1).all()
    known = make_network().train()(batch).weight_BM > 0
    assert torch.equal(known_BM, known)


def test_a_loss_of_an_unknown_task_is_refused(
    make_network: Make, network_config: NetworkConfig
) -> None:
    loss = {"binary": {"defualt": {"focal": 2}}}
    config = NetworkConfig.model_validate(network_config.model_dump() | {"loss": loss})
    with pytest.raises(UserError, match=r"network\.loss\.binary: no binary task 'defualt'"):
        make_network(config=config)
