"""The share of unknown tokens: of the fit role, the same each time, said once where it is large;
modalities that nobody has."""

from pathlib import Path

import polars as pl
import pytest

from models.data.schema import UserError
from models.data.stats import Scale, Stats
from models.data.vocabulary import Vocabulary
from ray_jobs.config import Config
from ray_jobs.snapshot import Snapshot
from ray_jobs.unknown import absent_modalities, unknown_tokens


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """Two buckets of the fit role, Chinese texts in every second row; one test row in Chinese."""
    rows = [["the refund came"], ["退款没有到账"], [], ["the refund came", "退款没有到账"]]
    for role, texts in (("fit", rows), ("test", [["没有"]])):
        (tmp_path / role).mkdir()
        for bucket, half in enumerate((texts[::2], texts[1::2])):
            if half:
                frame = pl.DataFrame({"texts": half}, schema={"texts": pl.List(pl.String)})
                frame.write_parquet(tmp_path / role / f"bucket-{bucket:04d}.parquet")
    nothing = Scale(knots=(), scores=(), median=None)
    vocabulary = Vocabulary(event_types=("buy",))
    stats = Stats(vocabulary=vocabulary, tabular={}, social={}, amount=nothing, targets={})
    return Snapshot(
        folder=str(tmp_path), versions={}, stats=stats, tabular=(), categorical=(), social=(),
        rows={}, account={},
    )  # fmt: skip


def with_encoder(config: Config, encoder: str) -> Config:
    text = config.network.text.model_copy(update={"encoder": encoder})
    network = config.network.model_copy(update={"text": text})
    return config.model_copy(update={"network": network})


def test_a_large_share_is_said_in_one_line(
    demo_config: Config, snapshot: Snapshot, capsys: pytest.CaptureFixture[str]
) -> None:
    share = unknown_tokens(with_encoder(demo_config, "minilm"), snapshot)
    assert 0.2 < share < 0.7
    assert share == unknown_tokens(with_encoder(demo_config, "minilm"), snapshot)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(
        f"train: warning: {share:.0%} of the tokens of the texts are unknown"
    )


def test_known_words_are_not_worth_a_line(
    demo_config: Config, snapshot: Snapshot, capsys: pytest.CaptureFixture[str]
) -> None:
    pl.DataFrame({"texts": [["the refund came"], []]}).write_parquet(snapshot.files("fit")[1])
    pl.DataFrame({"texts": [["the refund"]]}).write_parquet(snapshot.files("fit")[0])
    assert unknown_tokens(with_encoder(demo_config, "minilm"), snapshot) == 0
    assert capsys.readouterr().out == ""


def test_an_encoder_that_does_not_exist_is_refused(demo_config: Config, snapshot: Snapshot) -> None:
    with pytest.raises(UserError, match="no-such-encoder"):
        unknown_tokens(with_encoder(demo_config, "no-such-encoder"), snapshot)


def test_what_nobody_has_is_said_in_one_line(
    snapshot: Snapshot, capsys: pytest.CaptureFixture[str]
) -> None:
    absent_modalities(snapshot)
    assert capsys.readouterr().out == ""
    stats = snapshot.stats.model_copy(update={"absent": ("text", "social")})
    absent_modalities(snapshot.model_copy(update={"stats": stats}))
    assert capsys.readouterr().out == (
        "train: nobody of the fit role has text or social: "
        "the network leaves that out for everyone\n"
    )
