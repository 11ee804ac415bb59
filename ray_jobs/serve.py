"""`serve`: the champion behind the scoring endpoint."""

from functools import partial
from pathlib import Path

from models.scoring import artifact
from ray_jobs import graph, registry
from ray_jobs.config import Config
from ray_jobs.serving import app
from ray_jobs.serving.social import GraphReader
from ray_jobs.tables import Tables


def start(config: Config, tables: Tables) -> str:
    """Serve the champion on the Ray that this process is connected to; its URL once it answers."""
    model = registry.champion(tables.lake).path
    return app.start(config, model, graph=graph_reader(tables, model))


def serve_forever(config: Config, tables: Tables) -> None:
    """Serve the champion until interrupted."""
    model = registry.champion(tables.lake).path
    app.serve_forever(config, model, graph=graph_reader(tables, model))


def graph_reader(tables: Tables, model: str) -> GraphReader | None:
    """Reads graph snapshots from the lake, as they are made for a model's folder; None of a lake
    without ties.

    Raises UserError for a damaged model, and for a graph of an earlier version.
    """
    if "edges" not in tables.versions:
        return None
    graph.check(tables.lake)
    spec = artifact.load_spec(Path(model))
    return GraphReader(partial(tables.graph, graph.neighbours_of(spec)), len(tables.buckets))
