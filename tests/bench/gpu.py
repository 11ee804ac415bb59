"""`make bench-gpu`: the network's training step and the text encoder on one GPU, in bf16.

What is measured imports `models` alone, so that it runs where Ray is not installed: `--prepare
FOLDER` writes what it needs (a simulated marketplace's rows, the network's configuration, an
encoder's architecture and tokenizer, the reviews of Women's Clothing), `--folder FOLDER` measures
there; without either, both happen here. Encoders have their architecture's shape and new weights:
how fast they are does not hang on what they say. Prints a table, then one line of JSON.
"""

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import polars as pl
import torch
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from torch import Tensor

from models.data.batch import Batch, Tokenizer, make_batch, make_texts
from models.data.features import FeatureConfig, Features
from models.data.stats import Stats
from models.data.tasks import Task
from models.nets.config import FitConfig, NetworkConfig
from models.nets.fit import Epoch, Loop
from models.nets.network import Network
from models.nets.text import TextTower, empty_encoder, encoder_path, freeze, load_tokenizer
from tests.bench.parts.encoding import REVIEWS, flops
from tests.bench.peers.texts import MAX_TOKENS

GPU = torch.device("cuda")
GOAL = 0.4  # of the matmul rate
SIZES: dict[str, dict[str, int]] = {  # of the architecture; MiniLM's own, and BERT base's
    "minilm": {},
    "bert-base": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    },
}
ENCODER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
TASKS = TypeAdapter(dict[str, Task])
LONGEST = {"own texts": 32, "reviews": MAX_TOKENS}  # of a text, in tokens
WARM_UP, COUNTED = 5, 20  # steps
Run = dict[str, Any]


def main() -> None:
    """Prepare, measure, or both."""
    parser = argparse.ArgumentParser(prog="make bench-gpu", description=__doc__)
    parser.add_argument("--prepare", type=Path, help="write this folder, and measure nothing")
    parser.add_argument("--folder", type=Path, help="measure with what was prepared there")
    parser.add_argument("--users", type=int, default=2000, help="of the simulated marketplace")
    parser.add_argument("--tokens", type=int, default=65_536, help="of a batch's texts, about")
    args = parser.parse_args()
    if args.prepare is not None:
        prepare(args.prepare, args.users)
        return
    if not torch.cuda.is_available():
        print("bench-gpu: no GPU here, nothing measured; --prepare FOLDER to measure elsewhere")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder
        if folder is None:
            folder = Path(scratch) / "prepared"
            prepare(folder, args.users)
        result = measure(folder, args.tokens)
    show(result)
    print(json.dumps(result))


def prepare(folder: Path, users: int) -> None:
    """What measuring needs, from a simulated marketplace and the reviews."""
    from ray_jobs import snapshot
    from ray_jobs.config import Config
    from tests.bench.train import simulate

    if not REVIEWS.exists():
        raise SystemExit(f"bench-gpu: the reviews are not here: there is no {REVIEWS}")
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        simulate(data, users)
        config = Config.model_validate_json((data / "config.json").read_text(encoding="utf-8"))
        made = snapshot.load(next((data / "snapshots").iterdir()))
        rows = made.read("fit")
        rows.frame.write_parquet(folder / "rows.parquet")
    text = config.network.text.model_copy(update={"layers": None, "trainable_layers": None})
    parts = {
        "network": config.network.model_copy(update={"text": text}),
        "features": config.features,
        "stats": made.stats,
    }
    for name, part in parts.items():
        (folder / f"{name}.json").write_text(part.model_dump_json(), encoding="utf-8")
    (folder / "tasks.json").write_bytes(TASKS.dump_json(config.tasks))
    columns = {"tabular": rows.tabular, "categorical": rows.categorical, "social": rows.social}
    (folder / "columns.json").write_text(json.dumps(columns), encoding="utf-8")
    reviews = pl.read_parquet(REVIEWS, columns=["Review Text"]).drop_nulls()
    (folder / "reviews.json").write_text(json.dumps(reviews.to_series().to_list()))
    for name, changes in SIZES.items():
        (folder / name).mkdir()
        for file in ENCODER_FILES:
            shutil.copy(Path(encoder_path("minilm")) / file, folder / name)
        config_file = folder / name / "config.json"
        sizes = json.loads(config_file.read_text(encoding="utf-8")) | changes
        config_file.write_text(json.dumps(sizes), encoding="utf-8")


def measure(folder: Path, tokens: int) -> Run:
    """Every figure, of the first GPU."""
    tokenizer = load_tokenizer(str(folder / "minilm"))
    peak = matmul_rate()
    result: Run = {"gpu": torch.cuda.get_device_name(), "matmul_tflops": peak / 1e12, "runs": {}}
    several = {texts: batches_of(folder, tokenizer, texts, tokens) for texts in LONGEST}
    for name in SIZES:
        run = {
            f"training step, {texts}": train(folder, name, batches)
            for texts, batches in several.items()
        } | {"encoding, reviews": encode(folder, name, tokenizer)}
        for one in run.values():
            one["utilisation"] = one["flops_per_s"] / peak
        result["runs"][name] = run
    return result


def batches_of(folder: Path, tokenizer: Tokenizer, texts: str, tokens: int) -> list[Batch]:
    """The rows in batches, a user's together, as training has them, with so many tokens each.

    With "reviews", a row's texts are reviews, as many as it has of its own.
    """
    columns = {k: tuple(v) for k, v in json.loads((folder / "columns.json").read_text()).items()}
    frame = pl.read_parquet(folder / "rows.parquet").sort("user_key")
    if texts == "reviews":
        endless = itertools.cycle(json.loads((folder / "reviews.json").read_text()))
        counts = frame["texts"].list.len()
        own = [list(itertools.islice(endless, count)) for count in counts]
        frame = frame.with_columns(texts=pl.Series(own, dtype=pl.List(pl.String)))
    _, stats, _, tasks = parts_of(folder)

    def batch(part: pl.DataFrame) -> Batch:
        labels = [f"y_{name}" for name in tasks]
        return make_batch(Features(part, **columns), stats, tokenizer, LONGEST[texts], labels)

    first = batch(frame.head(1024))
    size = int(1024 * tokens / sum(lengths_of(first.texts.masks)))
    parts = [part for part in frame.iter_slices(size) if part.height == size]
    return [batch(part) for part in parts or [frame]]


def parts_of(folder: Path) -> tuple[NetworkConfig, Stats, FeatureConfig, dict[str, Task]]:
    """What a network is made of, beside its encoder."""
    return (
        NetworkConfig.model_validate_json((folder / "network.json").read_text(encoding="utf-8")),
        Stats.model_validate_json((folder / "stats.json").read_text(encoding="utf-8")),
        FeatureConfig.model_validate_json((folder / "features.json").read_text(encoding="utf-8")),
        TASKS.validate_json((folder / "tasks.json").read_bytes()),
    )


def train(folder: Path, encoder: str, batches: list[Batch]) -> Run:
    """Steps of the training loop, the whole encoder learning; the median step after a warm-up.

    The utilisation counts the encoder's products alone, of the texts' own tokens.
    """
    config, stats, features, tasks = parts_of(folder)
    torch.cuda.reset_peak_memory_stats()
    network = Network(config, features, stats, tasks, empty_encoder(folder / encoder))
    steps = WARM_UP + COUNTED
    several = list(itertools.islice(itertools.cycle(batches), steps))
    loop = Loop(network, FitConfig(epochs=1), steps, GPU)
    seconds, epochs = list[float](), list[Epoch]()
    loop.run(
        lambda epoch: several,
        lambda epoch: batches[:1],
        lambda epoch, loop: epochs.append(epoch),
        lambda step, loop: seconds.append(step.seconds),
    )
    step = statistics.median(seconds[WARM_UP:])
    lengths = [length for batch in batches for length in lengths_of(batch.texts.masks)]
    return {
        "rows_per_s": len(batches[0]) / step,
        "step_s": step,
        "tokens": sum(lengths) / len(batches),
        "precision": epochs[0].precision,
        "flops_per_s": 3 * flops(folder / encoder, lengths) / len(batches) / step,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def encode(folder: Path, encoder: str, tokenizer: Tokenizer) -> Run:
    """The reviews' encodings, from tokens on the GPU; the median of several rounds."""
    texts = json.loads((folder / "reviews.json").read_text())
    model = empty_encoder(folder / encoder)
    freeze(model, 0)
    tower = TextTower(model.bfloat16(), 8, 0.0).eval().to(GPU)
    made, _ = make_texts(texts, tokenizer, LONGEST["reviews"])
    moved = made.to(GPU)

    @torch.inference_mode()
    def run() -> None:
        tower.encode(moved)

    seconds = median_s(run, rounds=5)
    lengths = lengths_of(made.masks)
    return {
        "texts_per_s": len(texts) / seconds,
        "seconds": seconds,
        "tokens": sum(lengths),
        "padding": 1 - sum(lengths) / sum(part.numel() for part in moved.masks),
        "flops_per_s": flops(folder / encoder, lengths) / seconds,
    }


def lengths_of(masks: Iterable[Tensor]) -> list[int]:
    """How many tokens each text has of its own."""
    return [length for mask in masks for length in mask.sum(1).tolist()]


def matmul_rate() -> float:
    """FLOP/s of a large bf16 product of random numbers."""
    size = 8192
    left, right = (torch.randn(size, size, device=GPU, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / median_s(lambda: left @ right, rounds=20)


def median_s(run: Callable[[], object], rounds: int) -> float:
    """Seconds of a run, once the GPU is done with it."""
    seconds = []
    for number in range(WARM_UP + rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def show(result: Run) -> None:
    """The figures as a table."""
    table = Table(f"{result['gpu']}, bf16", "rows or texts/s", "TFLOP/s", "of a matmul", "goal")
    peak = result["matmul_tflops"]
    table.add_row("matmul of 8192³", "", f"{peak:.0f}", "", "")
    for encoder, run in result["runs"].items():
        for name, one in run.items():
            rate = one.get("rows_per_s") or one["texts_per_s"]
            table.add_row(
                f"{name}, {encoder}",
                f"{rate:,.0f}",
                f"{one['flops_per_s'] / 1e12:.0f}",
                f"{one['utilisation']:.0%}",
                f"≥ {GOAL:.0%}",
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
