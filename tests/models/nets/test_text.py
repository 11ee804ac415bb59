"""The text tower: loading, freezing, encoding each text the same whoever stands beside it."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel, DistilBertConfig, DistilBertModel

from models.data.batch import Batch, Tokenizer, make_texts, pad
from models.data.schema import UserError
from models.nets.fit import FitConfig, Loop
from models.nets.network import Network, NetworkConfig
from models.nets.text import (
    TextConfig,
    TextTower,
    check_encoder,
    empty_encoder,
    encoder_digest,
    encoder_path,
    encoder_to_train,
    freeze,
    load_encoder,
    load_tokenizer,
    mean_encoding,
    unknown_share,
)

WIDTH = 16
SENTENCES = [
    "money is short again",
    "fast",
    "not good not fast late late late late late thanks",
    "good !",
    "refund money",
]


@pytest.fixture(scope="module")
def tower(encoder_folder: Path) -> TextTower:
    torch.manual_seed(5)
    encoder = load_encoder(str(encoder_folder))
    freeze(encoder, None)
    return TextTower(encoder, WIDTH, dropout=0.0).eval()


@pytest.fixture
def damaged(encoder_folder: Path, tmp_path: Path) -> Path:
    """A copy of the encoder, to be damaged."""
    return Path(shutil.copytree(encoder_folder, tmp_path / "encoder"))


def trainable(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("load", [load_encoder, load_tokenizer])
@pytest.mark.parametrize("name", ["no-such/encoder", "minilm2", "/no/such/folder", ""])
def test_an_unknown_encoder_is_named_in_one_line(
    load: Callable[[str], object], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as refused:
        load(name)
    assert str(refused.value).startswith(f"network.text.encoder {name!r}: cannot be loaded (")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("keep", [0, 3, 5000])
def test_truncated_weights_are_refused_in_one_line(damaged: Path, keep: int) -> None:
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(UserError, match="cannot be loaded") as refused:
        load_encoder(str(damaged))
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_tokenizer_is_refused(damaged: Path) -> None:
    for file in damaged.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(str(damaged))


@pytest.mark.parametrize("renamed", [False, True])
def test_weights_that_are_not_all_there_are_refused(damaged: Path, renamed: bool) -> None:
    """What is missing would be drawn at random, and nobody told."""
    file = damaged / "model.safetensors"
    weights = load_file(file)
    held = {
        (f"other.{name}" if renamed else name): value
        for name, value in weights.items()
        if renamed or not name.startswith("encoder.layer.0.attention")
    }
    save_file(held, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"its weights lack \S+ and \d+ more$"):
        load_encoder(str(damaged))


def test_an_encoder_without_a_pooler_is_whole(damaged: Path) -> None:
    BertModel.from_pretrained(damaged, add_pooling_layer=False).save_pretrained(damaged)
    load_encoder(str(damaged))


def test_an_encoder_that_cannot_read_what_it_is_given_is_refused(encoder_folder: Path) -> None:
    config = TextConfig(encoder=str(encoder_folder))
    check_encoder(config, 16)
    with pytest.raises(UserError, match=r"^features\.max_tokens: 4096, of an encoder that reads"):
        check_encoder(config, 4096)


def test_a_tokenizer_of_other_weights_is_refused(damaged: Path) -> None:
    words = load_encoder(str(damaged)).config.vocab_size
    tokenizer = AutoTokenizer.from_pretrained(damaged)
    tokenizer.add_tokens([f"word-{k}" for k in range(words)])
    tokenizer.save_pretrained(damaged)
    with pytest.raises(UserError, match=rf"knows \d+ tokens, its weights {words}$"):
        check_encoder(TextConfig(encoder=str(damaged)), 16)


def test_an_encoder_is_known_by_its_files(damaged: Path) -> None:
    before = encoder_digest(str(damaged))
    assert before is not None and before == encoder_digest(str(damaged))
    file = damaged / "model.safetensors"
    save_file({k: v + 1 for k, v in load_file(file).items()}, file, {"format": "pt"})
    assert encoder_digest(str(damaged)) != before
    assert encoder_digest("of-the-hub") is None


def test_weights_stored_in_half_precision_are_used_in_full(damaged: Path) -> None:
    BertModel.from_pretrained(damaged).bfloat16().save_pretrained(damaged)
    assert {p.dtype for p in load_encoder(str(damaged)).parameters()} == {torch.float32}


def test_an_empty_encoder_takes_the_weights_of_the_full_one(encoder_folder: Path) -> None:
    full, bare = load_encoder(str(encoder_folder)), empty_encoder(encoder_folder)
    bare.load_state_dict(full.state_dict())
    ids = torch.tensor([[2, 5, 6, 3]])
    assert torch.equal(full.eval()(ids).last_hidden_state, bare.eval()(ids).last_hidden_state)


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 12])
def test_freeze_leaves_only_the_last_layers_trainable(encoder_folder: Path, layers: int) -> None:
    encoder = load_encoder(str(encoder_folder))
    freeze(encoder, layers)
    expected = tuple(f"encoder.layer.{k}." for k in range(2) if k >= 2 - layers)
    everything = [name for name, _ in encoder.named_parameters()]
    assert trainable(encoder) == {name for name in everything if name.startswith(expected)}


def test_without_a_number_of_layers_all_but_the_unused_pooler_is_trainable(
    encoder_folder: Path,
) -> None:
    encoder = load_encoder(str(encoder_folder))
    freeze(encoder, None)
    everything = {name for name, _ in encoder.named_parameters()}
    assert everything - trainable(encoder) == {"pooler.dense.weight", "pooler.dense.bias"}


def test_the_first_layers_alone_are_an_encoder_of_their_own(
    encoder_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = load_encoder(str(encoder_folder)).eval()
    short = encoder_to_train(TextConfig(encoder=str(encoder_folder), layers=1)).eval()
    tokens = make_texts(SENTENCES, tokenizer, 16)[0].tokens[0]
    with torch.no_grad():
        states = whole(input_ids=tokens, output_hidden_states=True).hidden_states
        assert torch.equal(short(input_ids=tokens).last_hidden_state, states[1])
    short.save_pretrained(tmp_path)
    assert set(empty_encoder(tmp_path).state_dict()) == set(short.state_dict())


def test_more_layers_than_there_are_is_refused(encoder_folder: Path) -> None:
    with pytest.raises(UserError, match=r"network\.text\.layers: 3, of an encoder of 2"):
        encoder_to_train(TextConfig(encoder=str(encoder_folder), layers=3))


def test_layers_of_an_encoder_that_is_no_bert_cannot_be_counted() -> None:
    config = DistilBertConfig(vocab_size=9, dim=8, hidden_dim=8, n_layers=1, n_heads=1)
    encoder = DistilBertModel(config)
    freeze(encoder, None)
    with pytest.raises(UserError, match=r"trainable_layers.*DistilBertModel"):
        freeze(encoder, 1)


@pytest.mark.parametrize("made", ["loaded", "empty"])
def test_the_encoder_has_no_dropout_while_it_is_trained(
    tower: TextTower, tokenizer: Tokenizer, encoder_folder: Path, made: str
) -> None:
    if made == "empty":
        tower = TextTower(empty_encoder(encoder_folder), WIDTH, 0.1)
        assert tower.encoder.config.hidden_dropout_prob > 0
    tower.eval()
    texts, _ = make_texts(SENTENCES, tokenizer, 16)
    with torch.no_grad():
        calm = tower.encode(texts)
        tower.train()
        first, second = tower.encode(texts), tower.encode(texts)
        tower.eval()
    assert torch.equal(first, second)
    assert torch.equal(first, calm)


def test_a_text_is_encoded_the_same_alone_and_among_others(
    tower: TextTower, tokenizer: Tokenizer
) -> None:
    together, rank = make_texts(SENTENCES, tokenizer, 16)
    with torch.no_grad():
        among = tower.encode(together)[torch.from_numpy(rank)]
        alone = torch.cat([tower.encode(make_texts([s], tokenizer, 16)[0]) for s in SENTENCES])
    assert among.dtype == torch.float32
    assert torch.allclose(among, alone, atol=1e-5, rtol=0)
    assert torch.pdist(alone).min() > 1e-3  # they do differ from each other


def test_the_mean_ignores_padding(tower: TextTower) -> None:
    tokens, mask = pad([[2, 5, 6, 3], [2, 5, 6, 7, 8, 9, 3]])
    more = nn.functional.pad(tokens, (0, 24), value=9), nn.functional.pad(mask, (0, 24))
    with torch.no_grad():
        mean = mean_encoding(tower.encoder, tokens, mask)
        hidden = tower.encoder(input_ids=tokens[:1, :4]).last_hidden_state
        assert torch.allclose(mean[0], hidden[0].mean(0), atol=1e-5)
        assert torch.allclose(mean, mean_encoding(tower.encoder, *more), atol=1e-5)


def test_with_no_text_at_all_every_trainable_parameter_has_a_gradient(
    encoder_folder: Path, batch: Batch, take: Callable[[Batch, Sequence[int]], Batch]
) -> None:
    encoder = load_encoder(str(encoder_folder))
    freeze(encoder, 1)
    tower = TextTower(encoder, WIDTH, dropout=0.1)
    silent = take(batch, [r for r in range(len(batch)) if bool((batch.text_BT[r] < 0).all())])
    assert len(silent) > 1
    none = replace(silent, texts=replace(batch.texts, tokens=(), masks=(), strings=()))
    vectors_BD, known_B = tower(tower.encode(none.texts), none)
    assert vectors_BD.shape == (len(none), WIDTH)
    assert not known_B.any()
    assert torch.isfinite(vectors_BD).all()
    vectors_BD.sum().backward()
    for name, parameter in tower.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name


def test_known_are_those_with_a_text(tower: TextTower, batch: Batch) -> None:
    with torch.no_grad():
        vectors_BD, known_B = tower(tower.encode(batch.texts), batch)
    assert known_B.tolist() == (batch.text_BT >= 0).any(1).tolist()
    assert known_B.any() and not known_B.all()
    assert torch.isfinite(vectors_BD).all()


def test_the_order_of_texts_matters_not_but_their_age_does(tower: TextTower, batch: Batch) -> None:
    def vectors(of: Batch) -> Tensor:
        with torch.no_grad():
            result: Tensor = tower(tower.encode(of.texts), of)[0]
        return result

    known_B = (batch.text_BT >= 0).any(1)
    turned = replace(batch, text_BT=batch.text_BT.flip(1), text_age_BT=batch.text_age_BT.flip(1))
    older = replace(batch, text_age_BT=batch.text_age_BT + 0.5)
    plain_BD = vectors(batch)
    assert torch.allclose(plain_BD, vectors(turned), atol=1e-6)
    assert ((plain_BD - vectors(older)).abs().max(1).values > 1e-4)[known_B].all()
    assert torch.equal(plain_BD[~known_B], vectors(older)[~known_B])


def test_texts_fade_with_their_age(tower: TextTower, batch: Batch) -> None:
    """Also where their embedding does not say how old they are."""
    older = replace(batch, text_age_BT=batch.text_age_BT + 0.5)
    with torch.no_grad():
        tower.age.weight.zero_()
        encoded_UE = tower.encode(batch.texts)
        moved_BD = tower(encoded_UE, batch)[0] - tower(encoded_UE, older)[0]
    assert torch.equal(moved_BD.abs().amax(1) > 1e-5, (batch.text_BT >= 0).any(1))


def test_a_larger_vocabulary_than_the_tokenizers_is_allowed(damaged: Path) -> None:
    """Embeddings are often padded to a multiple of 64 rows."""
    config = BertConfig.from_pretrained(damaged)
    config.vocab_size = 64
    BertModel(config).save_pretrained(damaged)
    texts, _ = make_texts(SENTENCES, load_tokenizer(str(damaged)), 16)
    assert TextTower(load_encoder(str(damaged)), 8, 0.0).encode(texts).shape == (5, 32)


def test_minilm_knows_what_english_means() -> None:
    assert Path(encoder_path("minilm")).is_dir()
    encoder = load_encoder("minilm")
    freeze(encoder, 1)
    tower = TextTower(encoder, WIDTH, dropout=0.0)
    texts, rank = make_texts(
        ["I lost my job", "I have become unemployed", "What a lovely colour"],
        load_tokenizer("minilm"),
        32,
    )
    with torch.no_grad():
        unit_UE = nn.functional.normalize(tower.encode(texts)[torch.from_numpy(rank)])
    assert unit_UE.shape == (3, 384)
    assert unit_UE[0] @ unit_UE[1] > unit_UE[0] @ unit_UE[2] + 0.2


def test_unknown_tokens_are_counted_within_what_is_read(tokenizer: Tokenizer) -> None:
    assert unknown_share(tokenizer, ["money is short", "没有钱了"], 16) == 4 / 7
    assert unknown_share(tokenizer, ["money is short 没有钱了"], 3) == 0
    assert unknown_share(tokenizer, ["money"], 16) == 0
    assert unknown_share(tokenizer, [], 16) == 0


def test_an_english_tokenizer_does_not_know_chinese() -> None:
    tokenizer = load_tokenizer("minilm")
    assert unknown_share(tokenizer, ["退款一直没有到账，客服也不理人"], 32) > 0.3
    assert unknown_share(tokenizer, ["The refund never came; nobody answers"], 32) == 0


def test_an_encoder_at_rest_keeps_its_encodings(
    make_network: Callable[..., Network], network_config: NetworkConfig, batch: Batch
) -> None:
    """With no layer to train it is as in frozen epochs: each text is encoded once."""
    text = network_config.text.model_copy(update={"trainable_layers": 0})
    network = make_network(config=network_config.model_copy(update={"text": text}))
    assert not network.text.learns
    before = {k: v.clone() for k, v in network.text.encoder.state_dict().items()}
    loop = Loop(network, FitConfig(epochs=2, precision="fp32"), 1, torch.device("cpu"))
    calls = []
    hook = network.text.encoder.register_forward_hook(lambda *_: calls.append(1))
    loop.run(lambda _: [batch], lambda _: [batch], lambda epoch, loop: None)
    hook.remove()
    assert len(calls) == len(batch.texts.tokens)
    for name, value in network.text.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
