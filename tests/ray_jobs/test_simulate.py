import hashlib
import json
from pathlib import Path

import polars as pl
import pytest

from models.data.schema import UserError
from ray_jobs.market.tables import SCHEMAS
from ray_jobs.market.world import WORLD_VERSION, SimulateConfig, world_sha256
from ray_jobs.simulate import MANIFEST, simulate, write_part

CONFIG = SimulateConfig(users=4200, seed=7, months=4)  # three parts, the last one short


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> tuple[Path, dict[str, int]]:
    out = tmp_path_factory.mktemp("market") / "raw"
    return out, simulate(CONFIG, str(out))


def test_files_do_not_depend_on_workers_or_order(
    written: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    out, _ = written
    for part in (2, 0, 1):  # one process, another order than Ray's
        write_part(CONFIG, part, str(tmp_path))
    assert hashes(tmp_path) == {k: v for k, v in hashes(out).items() if k != MANIFEST}


def test_counts_are_the_rows_of_the_files(written: tuple[Path, dict[str, int]]) -> None:
    out, counts = written
    for name in SCHEMAS:
        frame = pl.read_parquet(out / name, glob=True)
        assert dict(frame.schema) == SCHEMAS[name]
        assert frame.height == counts[name]
    assert counts["protected"] == CONFIG.users
    texts = pl.scan_parquet(out / "events").filter(pl.col("text").is_not_null())
    assert texts.select(pl.len()).collect().item() == counts["texts"]


def test_events_lie_in_the_folder_of_their_local_month(
    written: tuple[Path, dict[str, int]],
) -> None:
    out, _ = written
    folders = sorted(path.name for path in (out / "events").iterdir())
    assert folders == ["2023-11", "2023-12", "2024-01", "2024-02"]
    for folder in folders:
        times = pl.read_parquet(out / "events" / folder)["time"]
        assert set(times.dt.strftime("%Y-%m")) == {folder}


def test_the_manifest_names_the_world(written: tuple[Path, dict[str, int]]) -> None:
    out, counts = written
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest["world"] == {"version": WORLD_VERSION, "sha256": world_sha256()}
    assert SimulateConfig.model_validate(manifest["config"]) == CONFIG
    assert manifest["counts"] == counts


def test_no_temporary_file_is_left(written: tuple[Path, dict[str, int]]) -> None:
    out, _ = written
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".parquet", ".json"}


def test_again_writes_the_same(written: tuple[Path, dict[str, int]]) -> None:
    out, counts = written
    before = hashes(out)
    (out / "users" / "part-00001.parquet").unlink()
    assert simulate(CONFIG, str(out)) == counts
    assert hashes(out) == before


@pytest.mark.parametrize("change", [{"seed": 8}, {"users": 10}, {"selection": "policy"}])
def test_another_simulation_is_not_mixed_in(
    written: tuple[Path, dict[str, int]], change: dict[str, object]
) -> None:
    out, _ = written
    before = hashes(out)
    with pytest.raises(UserError, match="another simulation"):
        simulate(CONFIG.model_copy(update=change), str(out))
    assert hashes(out) == before


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not empty and holds no simulation\.json"):
        simulate(CONFIG, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_text("")
    with pytest.raises(UserError, match="is a file"):
        simulate(CONFIG, str(path))


def test_a_policy_hides_labels_and_the_oracle_keeps_them(tmp_path: Path) -> None:
    config = SimulateConfig(users=500, seed=7, months=5, selection="policy")
    counts = write_part(config, 0, str(tmp_path))
    oracle = pl.read_parquet(tmp_path / "oracle").filter(pl.col("task") != "spend_30d")
    labels = pl.read_parquet(tmp_path / "labels")
    assert counts["labels"] == labels.height == oracle["observed"].sum()
    assert 0.05 < 1 - oracle["observed"].mean() < 0.5
