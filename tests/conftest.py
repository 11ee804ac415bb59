"""What every test may use: one seed, one Ray, and the data sets that lie beside the repository."""

import gzip
import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
import yaml
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


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Of two processes (`-n 2 --dist each`), one has the tests of the one Ray, one all others.

    pytest-xdist 3.8 has groups for this, but with pytest 9.2 it does not see them.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        items[:] = [i for i in items if ("ray_cluster" in i.fixturenames) == (worker == "gw0")]


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
        "network.tabular.keep": 40,
        "network.text.encoder": tiny_encoder,
        "network.text.layers": "null",
        "network.text.trainable_layers": 1,
        "train.loop.epochs": 2,
        "train.loop.batch_rows": 256,
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


class SmallShop:
    """A shop whose ingest and snapshot take a second or two: raw files and their configuration."""

    users = 30
    months = range(1, 9)

    def month(self, number: int, amount: float = 1.0) -> pl.DataFrame:
        """The events of a month of 2024, three a user."""
        first = datetime(2024, number, 2, tzinfo=UTC)
        return pl.DataFrame(
            {
                "who": f"user {user}",
                "at": first + timedelta(days=day, hours=user),
                "what": "cancel" if (user + day + number) % 4 == 0 else "buy",
                "how_much": amount * (user + 1),
            }
            for user in range(self.users)
            for day in (0, 9, 17)
        )

    def write(self, raw: Path) -> list[Path]:
        """Months in Parquet, and profiles as gzipped JSON lines, one of them broken."""
        (raw / "events").mkdir(parents=True)
        for number in self.months:
            self.month(number).write_parquet(raw / "events" / f"2024-{number:02}.parquet")
        lines = [f'{{"who": "user {n}", "town": "Leeds"}}' for n in range(self.users + 5)]
        lines.insert(7, '{"who": "user 3", "to')
        people = gzip.compress("\n".join(lines).encode(), mtime=0)
        (raw / "all people.jsonl.gz").write_bytes(people)
        return sorted(path for path in raw.rglob("*") if path.is_file())

    def config(self, folder: Path, raw: str, lake: str | None = None) -> str:
        """A configuration in `folder`, of raw files at a path or URL; its path."""
        folder.mkdir(exist_ok=True)
        (folder / "secret").write_text("a secret of the tests", encoding="utf-8")
        columns = {"user_id": "who", "event_time": "at", "event_type": "what", "amount": "how_much"}
        cancels = "COUNT(*) FILTER (WHERE event_type = 'cancel') > 0"
        roles = {"fit": (2, 4), "select": (5, 5), "calibrate": (6, 6), "test": (7, 7)}
        tree = {
            "lake": lake or str(folder / "lake"),
            "work": str(folder / "work"),
            "secret_file": str(folder / "secret"),
            "buckets": 2,
            "sources": {
                "shop": {
                    "table": "events",
                    "path": f"{raw}/events/*.parquet",
                    "period": r"(\d{4}-\d\d)\.parquet",
                    "currency": "EUR",
                    "columns": columns,
                },
                "crm": {
                    "table": "users",
                    "path": f"{raw}/all people.jsonl.gz",
                    "immutable": True,
                    "columns": {"user_id": "who", "town": "town"},
                },
            },
            "profile": {"categorical": ["town"]},
            "tasks": {"cancels": {"kind": "binary", "expression": cancels}},
            "roles": {"pd": "cancels"},
            "split": {
                role: {"first": date(2024, first, 1), "last": date(2024, last, 1)}
                for role, (first, last) in roles.items()
            },
        }
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return str(path)


@pytest.fixture(scope="session")
def small_shop() -> SmallShop:
    """A small shop's raw files and configuration, to be written where a test wants them."""
    return SmallShop()
