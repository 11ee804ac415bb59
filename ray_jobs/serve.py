"""`serve`: the champion behind the scoring endpoint."""

from datetime import datetime

import polars as pl

from ray_jobs import registry
from ray_jobs.config import Config
from ray_jobs.serving import app
from ray_jobs.serving.social import GraphReader
from ray_jobs.tables import Tables


def start(config: Config, tables: Tables) -> str:
    """Serve the champion on the Ray that this process is connected to; its URL once it answers."""
    return app.start(config, registry.champion(tables.lake).path, graph=graph_reader(tables))


def serve_forever(config: Config, tables: Tables) -> None:
    """Serve the champion until interrupted."""
    model = registry.champion(tables.lake).path
    app.serve_forever(config, model, graph=graph_reader(tables))


def graph_reader(tables: Tables) -> GraphReader | None:
    """Reads a month's graph snapshot from the lake; None where there are no edges."""
    if "edges" not in tables.versions:
        return None

    def read(date: datetime) -> pl.DataFrame:
        month = tables.graph(date)
        assert month is not None
        return month

    return read
