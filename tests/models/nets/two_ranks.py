"""A rank of a training by DDP or FSDP: python two_ranks.py FOLDER SHARDING RANK

FOLDER holds `given.pt`: a network, its configuration and each rank's batches. The rank goes on
from FOLDER/cut.pt, where there is one; rank 0 leaves `SHARDING.pt`: the losses of the epochs, the
weights and the state at the end of the first.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from models.nets.fit import Epoch, Loop, unwrapped
from models.nets.sharding import gathered, like, shard


def main(folder: Path, sharding: str, rank: int) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{sharding}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    network, config, batches = torch.load(folder / "given.pt", weights_only=False)
    own = batches[rank]
    network = network if sharding == "ddp" else shard(network)
    wrap = DistributedDataParallel if sharding == "ddp" else unwrapped
    loop = Loop(network, config, len(own), torch.device("cpu"), wrap)
    if (folder / "cut.pt").exists():
        weights, state = torch.load(folder / "cut.pt", weights_only=True)
        sharded = loop.network.state_dict()
        loop.network.load_state_dict({k: like(v, sharded[k]) for k, v in weights.items()})
        loop.resume(state)
    epochs: list[tuple[float, float]] = []
    kept: list[Any] = []

    def done(epoch: Epoch, loop: Loop) -> None:
        epochs.append((epoch.train_loss, epoch.select_loss))
        kept.append((gathered(loop.network.state_dict()), gathered(loop.state())))

    loop.run(lambda _: own, lambda _: own[:2], done)
    if rank == 0:
        torch.save((epochs, kept[-1][0], kept[0]), folder / f"{sharding}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
