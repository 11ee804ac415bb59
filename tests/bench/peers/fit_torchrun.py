"""The same network and rows in a bare loop of PyTorch, every batch in memory before it starts:

    python -m torch.distributed.run --nproc-per-node RANKS -m tests.bench.peers.fit_torchrun FOLDER

FOLDER holds what `tests.bench.train` prepared. The first epoch warms up, the last one counts.
"""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import polars as pl
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from models.data.batch import Batch
from models.data.tasks import Role
from models.nets.config import Precision
from models.nets.fit import agreed_precision, autocast
from models.nets.network import Network
from ray_jobs import snapshot
from ray_jobs.config import Config
from ray_jobs.loader import Loader
from ray_jobs.rank import network_of

CPU = torch.device("cpu")


def epoch(
    network: Network,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    batches: list[Batch],
) -> int:
    """Train on the batches; how many rows they have."""
    for batch in batches:
        with autocast(precision, CPU):
            outputs = model(batch)
        objective = network.heads.objective(outputs.tasks, batch.labels_BK)
        loss = objective + 0.5 * network.loss(outputs, batch)[1]
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return sum(map(len, batches))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    config = Config.model_validate_json((folder / "config.json").read_text(encoding="utf-8"))
    made = snapshot.load(next((folder / "snapshots").iterdir()))
    rows = made.read("fit").frame
    own = rows.slice(rank * (rows.height // ranks), rows.height // ranks)

    def frames(role: Role, size: int) -> Iterable[pl.DataFrame]:
        return own.iter_slices(size) if role == "fit" else ()

    loader = Loader(config, made, frames, ranks)
    precision = agreed_precision(config.train.loop.precision, CPU)
    epochs = [list(loader.fit(number)) for number in range(2)]
    network = network_of(config, made).train()
    model = DistributedDataParallel(network)
    learned = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, fused=True)
    epoch(network, model, optimizer, precision, epochs[0])
    distributed.barrier()
    start = time.perf_counter()
    count = epoch(network, model, optimizer, precision, epochs[1])
    distributed.barrier()
    if rank == 0:
        print(json.dumps({"rows_per_s": ranks * count / (time.perf_counter() - start)}))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
