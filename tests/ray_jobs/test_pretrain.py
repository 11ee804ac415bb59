"""`pretrain` on a small shop: nothing of the future, whole or not at all; train starts from it."""

import json
import re
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
import ray
import torch
import yaml
from safetensors.torch import save_file

from models.data.schema import UserError
from models.nets.text import load_encoder, load_tokenizer
from models.scoring import artifact
from ray_jobs import checkpoint, jobs, pretrain, snapshot, train
from ray_jobs.cli import main
from ray_jobs.config import Config, load
from ray_jobs.rank import network_of

if TYPE_CHECKING:
    from tests.conftest import SmallShop

NEW = "pretrain.text.new={vocabulary: 300, layers: 1, width: 16, heads: 2}"
FAST = (
    NEW, "pretrain.text.epochs=2", "pretrain.behaviour.epochs=2", "network.width=16",
    "pretrain.text.precision=fp32", "pretrain.behaviour.precision=fp32",
)  # fmt: skip
EARLY = date(2023, 1, 1)  # before the first event
LAST = 4  # the fit role's last as-of time is the start of April


@pytest.fixture(scope="module")
def shop(
    small_shop: "SmallShop", ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The shop with texts that say their month, ingested; the path of its configuration."""
    folder = tmp_path_factory.mktemp("shop")
    small_shop.write(folder / "raw")
    for path in (folder / "raw/events").iterdir():
        month = int(path.stem[-2:])
        words = pl.format("{} in month{}", pl.col("what"), pl.lit(month))
        pl.read_parquet(path).with_columns(words=words).write_parquet(path)
    config = Path(small_shop.config(folder / "run", str(folder / "raw")))
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    tree["sources"]["shop"]["columns"]["text"] = "words"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    jobs.run_ingest(load(str(config)))
    return str(config)


@pytest.fixture(scope="module")
def config(shop: str) -> Config:
    return load(shop, FAST)


def starting_from(made: dict[str, Path]) -> tuple[str, str]:
    return (
        f"network.text.encoder={made['text']}",
        f"network.behaviour.pretrained={made['behaviour']}",
    )


@pytest.fixture(scope="module")
def made(config: Config) -> dict[str, Path]:
    return pretrain.pretrain(config, jobs.tables(config))


def test_only_the_past_of_the_last_as_of_time_is_read(
    config: Config, made: dict[str, Path]
) -> None:
    """Texts of later months are not in the vocabulary; later events are in no sequence."""
    words = load_tokenizer(str(made["text"])).get_vocab()  # type: ignore[attr-defined]
    months = {int(m.group(1)) for word in words if (m := re.fullmatch(r"month(\d)", word))}
    assert months == set(range(1, LAST))
    tables = jobs.tables(config)
    read = pretrain._Users(config, tables, snapshot.snapshot(config, tables))
    users = pl.concat([read(bucket) for bucket in tables.buckets])
    assert users.height == 30
    assert users["events_type"].list.len().unique().to_list() == [3 * (LAST - 1)]
    assert (users["events_age_h"].list.min() >= 0).all()


def test_an_account_says_what_it_was_made_from(config: Config, made: dict[str, Path]) -> None:
    for part, folder in made.items():
        account = json.loads((folder / pretrain.MADE_FROM).read_text(encoding="utf-8"))
        assert account["until"] == "2024-04-01"
        assert account["seed"] == config.seed
        assert len(account["losses"]) == 2
        assert account["rows"] == 30 if part == "behaviour" else account["rows"] >= 2 * (LAST - 1)


def test_a_bucket_of_users_with_one_event_has_no_row(config: Config) -> None:
    tables = jobs.tables(config)
    early = config.split.model_copy(
        update={"fit": config.split.fit.model_copy(update={"first": EARLY, "last": EARLY})}
    )
    made = snapshot.snapshot(config, tables)
    users = pretrain._Users(config.model_copy(update={"split": early}), tables, made)
    assert sum(users(bucket).height for bucket in tables.buckets) == 0


def test_it_is_made_once_and_nothing_else_stays(
    config: Config, made: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {
        part: (folder / pretrain.MADE_FROM).stat().st_mtime_ns for part, folder in made.items()
    }
    assert pretrain.pretrain(config, jobs.tables(config)) == made
    assert capsys.readouterr().out.count("is already there") == 3  # the snapshot too
    for part, folder in made.items():
        assert (folder / pretrain.MADE_FROM).stat().st_mtime_ns == before[part]
    kept = {path.name for path in (Path(config.work) / "pretrained").iterdir()}
    assert kept == {folder.name for folder in made.values()}


def test_the_same_again_is_the_same_to_the_bit(config: Config, made: dict[str, Path]) -> None:
    again = config.model_copy(update={"work": config.work + "-again"})
    for part, folder in pretrain.pretrain(again, jobs.tables(config)).items():
        assert folder.name == made[part].name
        for name in ("model.safetensors", "tokenizer.json", "tower.safetensors"):
            if (made[part] / name).exists():
                assert (folder / name).read_bytes() == (made[part] / name).read_bytes(), name


def test_another_seed_is_another_encoder(config: Config, made: dict[str, Path]) -> None:
    other = config.model_copy(update={"seed": 1})
    assert pretrain.pretrain_texts(other, jobs.tables(config)) != made["text"]


def test_a_network_starts_from_what_was_made(shop: str, made: dict[str, Path]) -> None:
    config = load(shop, (*FAST, *starting_from(made)))
    taken = snapshot.snapshot(config, jobs.tables(config))
    network = network_of(config, taken)
    encoder = load_encoder(str(made["text"])).state_dict()
    for name, value in network.text.encoder.state_dict().items():
        assert torch.equal(value, encoder[name]), name
    fresh = network_of(load(shop, (*FAST, starting_from(made)[0])), taken)
    ours, theirs = network.behaviour.state_dict(), fresh.behaviour.state_dict()
    assert not torch.equal(ours["pool.out.weight"], theirs["pool.out.weight"])


def test_a_model_trained_with_adapters_is_kept_without_them(
    shop: str, made: dict[str, Path], tmp_path: Path
) -> None:
    """What follows a training's last epoch, from a checkpoint with adapters to the artifact."""
    config = load(shop, (*FAST, *starting_from(made), "network.text.lora={rank: 2}"))
    taken = snapshot.snapshot(config, jobs.tables(config))
    weights = network_of(config, taken).state_dict()
    assert [name for name in weights if "lora" in name]
    save_file(weights, tmp_path / checkpoint.WEIGHTS)
    finish = train._finish.remote(config, taken, str(tmp_path), "run", 0.25, [])
    loaded = artifact.load(Path(ray.get(finish)))
    assert not [name for name in loaded.network.state_dict() if "lora" in name]
    assert loaded.spec.trained_on["unknown_tokens"] == "0.2500"
    assert loaded.spec.network == config.network


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["split.fit.first=2023-11-01", "split.fit.last=2023-12-01"], "there is no text before"),
        (
            ["pretrain.text.new=null", "pretrain.text.encoder=no-such-encoder"],
            "'no-such-encoder': cannot be loaded",
        ),
        (["pretrain.text=null", "pretrain.behaviour=null"], "neither pretrain.text nor"),
        (["pretrain.text.batch=2", "pretrain.text.learning_rate=1.0e+30"], "the loss is"),
    ],
)
def test_what_cannot_be_pretrained_is_one_line(
    shop: str, sets: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Path(load(shop).work).parent / "refused"
    sets = [f"work={work}", NEW, "pretrain.behaviour=null", *sets]
    arguments = [argument for one in sets for argument in ("--set", one)]
    assert main(["pretrain", "-c", shop, *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not list((work / "pretrained").glob("*")) + list((work / "pretrained").glob(".*"))


def test_a_tower_of_another_network_is_refused_before_ranks_start(
    shop: str, made: dict[str, Path]
) -> None:
    start = f"network.behaviour.pretrained={made['behaviour']}"
    config = load(shop, (*FAST, "network.width=32", start))
    tables = jobs.tables(config)
    with pytest.raises(UserError, match="another width than this run's"):
        train.train(config, tables.lake, snapshot.snapshot(config, tables))
