"""A small marketplace, its features and a tiny trained model, shared by the tests of `models`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizer

from models.data.batch import Batch, Tokenizer, make_batch
from models.data.features import FeatureConfig, Features, features
from models.data.history import History, HistoryConfig, no_events, view
from models.data.rows import number
from models.data.stats import Stats, fit_stats
from models.data.tasks import Roles, Task
from models.data.vocabulary import Vocabulary
from models.nets.fit import FitConfig, Loop
from models.nets.network import Network, NetworkConfig
from models.nets.text import TextConfig, encoder_to_train, load_tokenizer
from models.scoring import artifact
from models.scoring.fit_calibration import calibrators_of, judge
from models.scoring.policy import PolicyConfig
from models.scoring.predict import Predictor
from models.scoring.scorecard import ScorecardConfig
from models.scoring.scorer import Scorer

TIME = pl.Datetime("us", "UTC")
USERS = 48
SILENT = 9_000_000_000_000_000_000  # a user without any event, profile or tie
AS_OF = datetime(2024, 6, 15, 12, tzinfo=UTC)
TYPES = ("order", "pay", "late", "review")
WORDS = ("money", "is", "short", "again", "good", "fast", "not", "late", "thanks", "refund")

NetworkMaker = Callable[..., Network]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices lose more than they win by threads, and runs are the same to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real BERT, 2 layers × 32, with random weights and a WordPiece tokenizer of ten words."""
    folder = tmp_path_factory.mktemp("encoder")
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "!")
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(encoder_folder: Path) -> Tokenizer:
    return load_tokenizer(str(encoder_folder))


@pytest.fixture(scope="session")
def user_keys() -> list[int]:
    """Keys all over the int64 range, ascending; the last is of the user without history."""
    step = 2**64 // (USERS + 2)
    return [*(-(2**63) + step * (i + 1) for i in range(USERS)), SILENT]


@pytest.fixture(scope="session")
def history(user_keys: list[int]) -> History:
    """Half a year of events; some users write, some are tied, some have a profile."""
    rng = np.random.default_rng(7)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    events = []
    for i, key in enumerate(user_keys[:-1]):
        risky = i % 3 == 0
        for n in range(int(rng.integers(4, 40))):
            kind = str(
                rng.choice(TYPES, p=(0.3, 0.2, 0.3, 0.2) if risky else (0.4, 0.35, 0.05, 0.2))
            )
            at = start + timedelta(minutes=int(rng.integers(0, 166 * 1440)))
            words = " ".join(rng.choice(WORDS, int(rng.integers(1, 9))))
            events.append(
                {
                    "user_key": key,
                    "event_id": 1000 * i + n,
                    "event_time": at,
                    "available_at": at + timedelta(minutes=5),
                    "utc_offset_min": 60 * (i % 5 - 2),
                    "event_type": kind,
                    "category": None if n % 4 == 0 else f"c{n % 3}",
                    "counterparty_key": i * 7 + n % 5,
                    "amount": round(float(rng.lognormal(3, 1)), 2) if kind in TYPES[:2] else None,
                    "text": words if kind == "review" and i % 4 else None,
                }
            )
    schema = pl.Schema({**no_events().schema, "amount": pl.Float64()})
    frame = pl.DataFrame(events, schema=schema).with_columns(
        pl.col("amount").cast(pl.Decimal(18, 4))
    )
    return History(recent=frame, profiles=_profiles(user_keys), social=_ties(user_keys))


def _profiles(user_keys: list[int]) -> pl.DataFrame:
    known = user_keys[:-1:2]
    since = pl.lit(datetime(2023, 1, 1, tzinfo=UTC)).cast(TIME)
    return pl.DataFrame(
        {
            "user_key": known,
            "income": [900.0 + 50 * i for i in range(len(known))],
            "region": [("north", "south", "west")[i % 3] for i in range(len(known))],
            "plan": ["free" if i % 2 else None for i in range(len(known))],
        }
    ).with_columns(valid_from=since, available_at=since)


def _ties(user_keys: list[int]) -> pl.DataFrame:
    tied = [(i, key) for i, key in enumerate(user_keys[:-1]) if i % 3 != 1]
    months = [datetime(2024, m, 1, tzinfo=UTC) for m in (5, 6)]
    return pl.DataFrame(
        [
            (key, month, 1.0 + i % 2, float(i % 5), float(i % 5), float(i % 4), float(i % 2))
            for month in months
            for i, key in tied
        ],
        schema={
            "user_key": pl.Int64,
            "graph_date": TIME,
            **{
                f"device_{m}": pl.Float64 for m in ("nodes", "shared", "max_shared", "known", "bad")
            },
        },
        orient="row",
    )


@pytest.fixture(scope="session")
def rows(user_keys: list[int]) -> pl.DataFrame:
    """Everyone as of one time in the middle of a month."""
    frame = pl.DataFrame({"user_key": user_keys}).with_columns(as_of=pl.lit(AS_OF).cast(TIME))
    return number(frame)


@pytest.fixture(scope="session")
def feature_config() -> FeatureConfig:
    return FeatureConfig(
        history=HistoryConfig(kept_events=64, kept_texts=4), max_events=12, max_texts=3
    )


@pytest.fixture(scope="session")
def tasks() -> dict[str, Task]:
    return {
        "default": Task(kind="binary"),
        "fraud": Task(kind="binary", weight=0.5),
        "spend": Task(kind="amount", weight=0.5),
    }


@pytest.fixture(scope="session")
def roles() -> Roles:
    return Roles(pd="default", fraud="fraud", spend="spend")


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary(
        event_types=TYPES,
        categories=("c1", "c2", "c0"),
        relations=("device",),
        numeric=("income",),
        categorical=("region", "plan"),
        levels={"region": ("north", "south", "west"), "plan": ("free",)},
    )


@pytest.fixture(scope="session")
def known(
    history: History, user_keys: list[int], vocabulary: Vocabulary, feature_config: FeatureConfig
) -> Features:
    """Features as of two months, with labels that follow from them; every tenth is unknown."""
    months = pl.DataFrame(
        {"as_of": [datetime(2024, m, 1, tzinfo=UTC) for m in (5, 6)]}, schema={"as_of": TIME}
    )
    own = number(pl.DataFrame({"user_key": user_keys[:-1]}).join(months, how="cross"))
    found = features(view(history, own, feature_config.history), vocabulary, feature_config)
    unknown = pl.col("row") % 10 == 9
    labels = {
        "y_default": (pl.col("n_late_90d") > 2).cast(pl.Float64),
        "y_fraud": (pl.col("device_shared").fill_null(0.0) > 2).cast(pl.Float64),
        "y_spend": pl.when(pl.col("row") % 3 > 0).then(pl.col("sum_90d")).otherwise(0.0),
    }
    given = {name: pl.when(~unknown).then(label) for name, label in labels.items()}
    frame = found.frame.with_columns(**given)
    return replace(found, frame=frame)


@pytest.fixture(scope="session")
def stats(vocabulary: Vocabulary, known: Features, tasks: dict[str, Task]) -> Stats:
    return fit_stats(vocabulary, known, known.frame, tasks)


@pytest.fixture(scope="session")
def network_config(encoder_folder: Path) -> NetworkConfig:
    text = TextConfig(encoder=str(encoder_folder), trainable_layers=1)
    return NetworkConfig(width=16, dropout=0.0, text=text)


@pytest.fixture(scope="session")
def make_network(
    network_config: NetworkConfig,
    feature_config: FeatureConfig,
    stats: Stats,
    tasks: dict[str, Task],
    encoder_folder: Path,
) -> NetworkMaker:
    """A new network, the same each time; other stats or another configuration on request."""

    def make(
        seed: int = 3, *, with_stats: Stats = stats, config: NetworkConfig = network_config
    ) -> Network:
        torch.manual_seed(seed)
        encoder = encoder_to_train(config.text)
        return Network(config, feature_config, with_stats, tasks, encoder)

    return make


@pytest.fixture(scope="session")
def make_batches(
    known: Features, stats: Stats, tokenizer: Tokenizer, tasks: dict[str, Task]
) -> Callable[[int], list[Batch]]:
    """The rows of `known`, with labels, in batches of a size."""

    def make(size: int) -> list[Batch]:
        parts = known.frame.iter_slices(size)
        names = [f"y_{name}" for name in tasks]
        return [
            make_batch(replace(known, frame=part), stats, tokenizer, 16, names) for part in parts
        ]

    return make


@pytest.fixture(scope="session")
def batch(make_batches: Callable[[int], list[Batch]]) -> Batch:
    """The first 24 rows."""
    return make_batches(24)[0]


@pytest.fixture(scope="session")
def take() -> Callable[[Batch, Sequence[int]], Batch]:
    """Some rows of a batch, in any order."""

    def rows_of(batch: Batch, rows: Sequence[int]) -> Batch:
        index = torch.tensor(rows, dtype=torch.int64)
        values = {f.name: getattr(batch, f.name) for f in fields(batch)}
        taken: dict[str, Any] = {k: v[index] for k, v in values.items() if isinstance(v, Tensor)}
        return replace(batch, **taken)

    return rows_of


@pytest.fixture(scope="session")
def trained(make_network: NetworkMaker, make_batches: Callable[[int], list[Batch]]) -> Network:
    """A few epochs on the small marketplace: enough that every modality matters a little."""
    network = make_network()
    batches = make_batches(32)
    config = FitConfig(epochs=4, learning_rate=5e-3, precision="fp32")
    loop = Loop(network, config, len(batches), torch.device("cpu"))
    loop.run(lambda _: batches, lambda _: batches, lambda epoch, loop: None)
    return network


@pytest.fixture(scope="session")
def spec(
    trained: Network,
    known: Features,
    stats: Stats,
    tokenizer: Tokenizer,
    tasks: dict[str, Task],
    roles: Roles,
    feature_config: FeatureConfig,
    network_config: NetworkConfig,
) -> artifact.ModelSpec:
    """All of the trained model but its weights."""
    predictor = Predictor(trained, stats, tokenizer, feature_config.max_tokens)
    calibration = calibrators_of([judge(predictor, known, tasks)], tasks, seed=5)
    return artifact.ModelSpec(
        tasks=tasks,
        roles=roles,
        features=feature_config,
        network=network_config,
        stats=stats,
        scorecard=ScorecardConfig(),
        policy=PolicyConfig(),
        calibrators=calibration.calibrators,
        replicates=calibration.replicates,
        trained_on={"seed": "3"},
    )


@pytest.fixture(scope="session")
def saved(
    spec: artifact.ModelSpec,
    trained: Network,
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The trained model on disk. A test that changes it works on a copy."""
    return artifact.save(tmp_path_factory.mktemp("artifacts"), spec, trained, tokenizer)


@pytest.fixture(scope="session")
def scorer(saved: Path) -> Scorer:
    return Scorer.load(saved)
