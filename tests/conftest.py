"""What every test may use: one seed, one Ray, and the data sets that lie beside the repository."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from ray_jobs.config import Config

ROOT = Path(__file__).parents[1]
DEFAULT_SEED = 20_111_209

# One profile for everybody, so that a failure in continuous integration is the same one here:
# there the examples are always the same, here each run draws new ones.
settings.register_profile(
    "raycredit", deadline=None, derandomize="CI" in os.environ, print_blob=True
)
settings.load_profile("raycredit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed",
        type=int,
        default=DEFAULT_SEED,
        help="seed of every random number that a test draws itself",
    )


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption('--seed')} (another one with --seed N)"


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run, printed in its header."""
    value: int = request.config.getoption("--seed")
    return value


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets, `shared/data` beside the repository; skips without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets are not here: there is no ../shared/data")
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray on this machine for the whole session.

    Four logical CPUs whatever the machine has: two train workers and the tasks that feed them
    need more than two, and would otherwise wait for each other for ever.
    """
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # halves the time of a short fit
        ray.init(
            "local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=512 * 2**20,
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT of two layers and 32 wide, untrained, with MiniLM's tokenizer: small enough."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from models.nets.text import encoder_path

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(encoder_path("minilm"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def demo_config(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: str) -> "Config":
    """The demo's configuration with fewer users, a tiny encoder, and a folder of its own."""
    from ray_jobs.config import load

    folder = tmp_path_factory.mktemp("demo") / "run"
    overrides = {
        "lake": folder / "lake",
        "work": folder,
        "secret_file": folder / "secret",
        "oracle": folder / "raw/oracle/*.parquet",
        "buckets": 2,
        "simulate.users": 1000,
        "serve.port": 0,
        "network.width": 32,
        "network.text.encoder": tiny_encoder,
        "network.text.trainable_layers": 1,
        "train.loop.epochs": 2,
    }
    for table in ("users", "protected", "edges", "labels"):
        overrides[f"sources.{table}.path"] = folder / f"raw/{table}/*.parquet"
    overrides["sources.events.path"] = folder / "raw/events/*/*.parquet"
    return load("demo", [f"{key}={value}" for key, value in overrides.items()])


@pytest.fixture(scope="session")
def demo_run(demo_config: "Config", ray_cluster: None) -> "Config":
    """The demo's road walked once, up to the backfill: its configuration."""
    from ray_jobs import demo

    demo.prepare(demo_config)
    demo.walk(demo_config)
    return demo_config


@pytest.fixture(scope="session")
def demo_dir(demo_run: "Config") -> Path:
    """The folder of `demo_run`."""
    return Path(demo_run.work)
