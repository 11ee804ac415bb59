"""Every notebook runs from top to bottom, in a copy, on the demo's results."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
MAX_OUTPUT_BYTES = 1_000_000
names = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


@names
def test_runs(path: Path, demo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCREDIT_DEMO_DIR", str(demo_dir))
    monkeypatch.setenv("RAYCREDIT_BENCH_DATA", str(path.with_name("bench-data.json")))
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []

    client = NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert any(cell.outputs for cell in code)


@names
def test_committed_output_is_small(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    outputs = [cell.get("outputs", []) for cell in notebook["cells"]]
    assert len(json.dumps(outputs)) <= MAX_OUTPUT_BYTES
