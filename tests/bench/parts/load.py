"""Requests to an endpoint from several connections, each sending its next once it has an answer."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np

WARM_UP_S = 3.0


@dataclass(frozen=True)
class Load:
    """Answers that came within the seconds that count, and each one's latency in seconds."""

    seconds: float
    latencies: tuple[float, ...]

    def figures(self) -> dict[str, float]:
        """Requests a second, and quantiles of the latency in milliseconds."""
        found = {"per_s": round(len(self.latencies) / self.seconds, 2)}
        for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99)):
            found[name] = round(1000 * float(np.quantile(self.latencies, share)), 2)
        return found


def load(url: str, token: str, bodies: Sequence[bytes], connections: int, seconds: float) -> Load:
    """Send `bodies` in turn, over and over. Raises RuntimeError on an answer other than 200."""
    return asyncio.run(_load(url, token, bodies, connections, seconds))


async def _load(
    url: str, token: str, bodies: Sequence[bytes], connections: int, seconds: float
) -> Load:
    begin = time.perf_counter() + WARM_UP_S
    end = begin + seconds
    latencies: list[float] = []
    next_body = itertools.cycle(bodies)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    pool = aiohttp.TCPConnector(limit=connections)

    async def ask(session: aiohttp.ClientSession) -> None:
        while (sent := time.perf_counter()) < end:
            async with session.post(f"{url}/v1/score", data=next(next_body)) as answer:
                content = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{url}: {answer.status}: {content[:300]!r}")
            answered = time.perf_counter()
            if begin <= answered < end:
                latencies.append(answered - sent)

    async with aiohttp.ClientSession(connector=pool, headers=headers) as session:
        await asyncio.gather(*(ask(session) for _ in range(connections)))
    return Load(seconds, tuple(latencies))
