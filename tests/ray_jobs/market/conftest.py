import pytest

from ray_jobs.market.block import Block, simulate_block
from ray_jobs.market.world import SimulateConfig

CONFIG = SimulateConfig(users=4000, seed=20240501)


@pytest.fixture(scope="session")
def config() -> SimulateConfig:
    return CONFIG


@pytest.fixture(scope="session")
def blocks() -> list[Block]:
    """4,000 users of the default world; about a second."""
    return [simulate_block(CONFIG, number) for number in range(CONFIG.blocks)]


@pytest.fixture(scope="session")
def block(blocks: list[Block]) -> Block:
    return blocks[0]
