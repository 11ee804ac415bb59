"""Low-rank adapters: they alone learn, a run with them resumes, merged they leave no trace."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from models.data.batch import Batch, Tokenizer, make_texts
from models.data.schema import UserError
from models.nets.fit import FitConfig, Loop
from models.nets.lora import LoraConfig, merge_adapters
from models.nets.network import Network, NetworkConfig
from models.nets.text import TextConfig, encoder_to_train, load_encoder
from models.scoring import artifact

CPU = torch.device("cpu")
FIT = FitConfig(epochs=3, frozen_epochs=1, text_learning_rate=1e-2, patience=9, precision="fp32")
SENTENCES = ["money is short again", "not good not fast", "thanks !"]


@pytest.fixture(scope="module")
def config(encoder_folder: Path) -> NetworkConfig:
    text = TextConfig(encoder=str(encoder_folder), lora=LoraConfig(rank=2, dropout=0.1))
    return NetworkConfig(width=16, dropout=0.0, text=text)


@pytest.fixture(scope="module")
def adapted(config: NetworkConfig, make_network: Callable[..., Network]) -> Callable[[], Network]:
    """A new network with adapters, the same each time."""
    return partial(make_network, config=config)


@pytest.fixture(scope="module")
def batches(make_batches: Callable[[int], list[Batch]]) -> list[Batch]:
    return make_batches(48)


@pytest.fixture(scope="module")
def trained_with_adapters(adapted: Callable[[], Network], batches: list[Batch]) -> Network:
    loop = Loop(adapted(), FIT, len(batches), CPU)
    torch.manual_seed(0)
    loop.run(lambda _: batches, lambda _: batches, lambda epoch, loop: None)
    return loop.network


def test_only_the_adapters_of_an_encoder_learn(
    adapted: Callable[[], Network], trained_with_adapters: Network, encoder_folder: Path
) -> None:
    plain = load_encoder(str(encoder_folder)).state_dict()
    before = adapted().text.encoder.state_dict()
    learned = set()
    for name, value in trained_with_adapters.text.encoder.state_dict().items():
        if "lora" in name:
            if not torch.equal(value, before[name]):
                learned.add(name.split(".lora")[0])
        else:
            assert torch.equal(value, plain[name.replace(".base_layer", "")]), name
    assert learned == {
        f"encoder.layer.{k}.attention.self.{part}" for k in (0, 1) for part in ("query", "value")
    }


def test_new_adapters_change_no_output(
    adapted: Callable[[], Network], encoder_folder: Path
) -> None:
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        plain = load_encoder(str(encoder_folder)).eval()(ids).last_hidden_state
        assert torch.equal(adapted().eval().text.encoder(ids).last_hidden_state, plain)


def test_a_run_with_adapters_resumes(
    adapted: Callable[[], Network], batches: list[Batch], tmp_path: Path
) -> None:
    """From what a checkpoint holds, after the frozen epoch and after a step of the adapters."""
    whole = Loop(adapted(), FIT, len(batches), CPU)

    def keep(_: object, loop: Loop) -> None:
        if loop.epoch < FIT.epochs:
            state = loop.network.state_dict(), loop.state(), torch.get_rng_state()
            torch.save(state, tmp_path / f"{loop.epoch}.pt")

    whole.run(lambda _: batches, lambda _: batches, keep)
    for epoch in (1, 2):
        weights, state, dropout = torch.load(tmp_path / f"{epoch}.pt", weights_only=True)
        resumed = Loop(adapted(), FIT, len(batches), CPU)
        resumed.network.load_state_dict(weights)
        resumed.resume(state)
        torch.set_rng_state(dropout)
        resumed.run(lambda _: batches, lambda _: batches, lambda epoch, loop: None)
        for name, value in resumed.network.state_dict().items():
            assert torch.equal(value, whole.network.state_dict()[name]), name


def test_merged_it_is_a_plain_encoder_with_the_same_outputs(
    trained_with_adapters: Network, adapted: Callable[[], Network], tokenizer: Tokenizer
) -> None:
    network = adapted()
    network.load_state_dict(trained_with_adapters.state_dict())
    texts, _ = make_texts(SENTENCES, tokenizer, 16)
    with torch.no_grad():
        before = network.eval().text.encode(texts)
        merge_adapters(network.text.encoder)
        after = network.text.encode(texts)
    assert torch.allclose(after, before, atol=1e-5)
    assert not [name for name in network.state_dict() if "lora" in name or "base_layer" in name]


def test_an_artifact_is_loaded_and_run_where_there_is_no_peft(
    trained_with_adapters: Network,
    adapted: Callable[[], Network],
    config: NetworkConfig,
    spec: artifact.ModelSpec,
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    network = adapted().eval()
    network.load_state_dict(trained_with_adapters.state_dict())
    merge_adapters(network.text.encoder)
    own = spec.model_copy(update={"network": config})
    folder = artifact.save(tmp_path, own, network, tokenizer)
    with torch.no_grad():
        expected = network.text.encoder(torch.tensor([[2, 5, 6, 3]])).last_hidden_state
    torch.save(expected, tmp_path / "expected.pt")
    script = (
        "import sys; sys.modules['peft'] = None\n"
        "import torch\n"
        "from models.scoring.scorer import Scorer\n"
        "network = Scorer.load(sys.argv[1]).artifact.network\n"
        "with torch.no_grad():\n"
        "    found = network.text.encoder(torch.tensor([[2, 5, 6, 3]])).last_hidden_state\n"
        "assert torch.allclose(found, torch.load(sys.argv[2]), atol=1e-6)\n"
    )
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "expected.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_targets_that_the_encoder_does_not_have_are_named(encoder_folder: Path) -> None:
    config = TextConfig(encoder=str(encoder_folder), lora=LoraConfig(targets=("q_proj",)))
    with pytest.raises(UserError, match=r"network\.text\.lora\.targets \['q_proj'\]") as refused:
        encoder_to_train(config)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "bad",
    [
        {"lora": {"rank": 0}},
        {"lora": {"targets": []}},
        {"lora": {"dropout": 1}},
        {"lora": {}, "trainable_layers": 2},
    ],
)
def test_an_impossible_configuration_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TextConfig.model_validate(bad)
