"""What the network cannot know: words that its encoder never met, modalities that nobody has."""

import polars as pl

from models.nets.text import load_tokenizer, unknown_share
from ray_jobs.config import Config
from ray_jobs.progress import say
from ray_jobs.snapshot import Snapshot

SAMPLE = 10_000  # texts
MUCH = 0.05


def unknown_tokens(config: Config, snapshot: Snapshot) -> float:
    """The share of unknown tokens in a sample of the fit role's texts; says so where it is large.

    Raises UserError when there is no such encoder.
    """
    encoder = config.network.text.encoder
    texts, max_tokens = _sample(snapshot, config.seed), config.features.max_tokens
    share = unknown_share(load_tokenizer(encoder), texts, max_tokens)
    if share > MUCH:
        say(
            f"train: warning: {share:.0%} of the tokens of the texts are unknown to the encoder "
            f"{encoder!r}, which cannot tell them apart; make one that knows them with "
            "`raycredit pretrain` (pretrain.text.new: {vocabulary: 8000}), or name a "
            "multilingual one in network.text.encoder (`raycredit import-encoder` writes one)"
        )
    return share


def absent_modalities(snapshot: Snapshot) -> None:
    """Say which modalities nobody of the fit role has, if any: the network leaves them out."""
    if snapshot.stats.absent:
        which = " or ".join(snapshot.stats.absent)
        say(f"train: nobody of the fit role has {which}: the network leaves that out for everyone")


def _sample(snapshot: Snapshot, seed: int) -> list[str]:
    """Distinct texts of the first users: buckets are drawn by a hash, so any of them is fair."""
    texts = pl.Series(dtype=pl.String)
    for file in snapshot.files("fit"):
        own = pl.read_parquet(file, columns=["texts"])["texts"].explode(empty_as_null=False)
        texts = pl.concat([texts, own]).unique()
        if len(texts) >= SAMPLE:
            break
    order = texts.hash(seed).arg_sort()
    return texts[order].head(SAMPLE).to_list()
