"""The shape of the repository: import rules, file sizes, what lies at the top."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("models", "tuning", "ray_jobs", "tests")
TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "cluster.yaml",
    "models",
    "notebooks",
    "pyproject.toml",
    "ray_jobs",
    "requirements.lock",
    "tests",
    "tuning",
}
MAX_LINES = 400
# A path that exists on somebody's machine only; a path inside a container is written with ~.
MACHINE_PATH = re.compile(r"(?<![\w.~}$*-])/(?:home|root|work|Users)/[\w.-]+")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what is tracked cannot be told")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [Path(name) for name in listed.stdout.split("\0") if name]
    assert files, "git tracks no file here"
    return files


def test_imports_run_one_way() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("models/data/a.py", "import ray"),
        ("models/scoring/a.py", "from ray.data import Dataset"),
        ("models/nets/a.py", "import tuning"),
        ("tuning/a.py", "import ray_jobs"),
        ("models/data/a.py", "import models.nets"),
        ("models/nets/a.py", "import models.scoring"),
    ],
)
def test_import_rules_catch(tmp_path: Path, module: str, statement: str) -> None:
    for package in ("models/data", "models/nets", "models/scoring", "tuning", "ray_jobs"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "models" / "__init__.py").touch()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert lint_imports(tmp_path).returncode == 0

    (tmp_path / module).write_text(statement + "\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1
    assert "BROKEN" in result.stdout


def test_files_stay_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
    }
    assert lengths
    assert {path: n for path, n in lengths.items() if n >= MAX_LINES} == {}


def test_top_level_is_the_agreed_one(tracked: list[Path]) -> None:
    assert {path.parts[0] for path in tracked} <= TOP_LEVEL


def test_no_path_of_one_machine(tracked: list[Path]) -> None:
    found = [
        f"{path}:{number}: {match.group()}"
        for path in tracked
        if path.suffix in {"", ".ipynb", ".j2", ".lock", ".md", ".py", ".toml", ".yaml"}
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1)
        for match in MACHINE_PATH.finditer(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "is_machine_path"),  # with | for /, since this file is searched too
    [
        ("path: |home|anna|data.csv", True),
        ('open("|root|model")', True),
        ("~|raycredit|requirements.lock", False),
        ("s3:||bucket|home|x", False),
        ("{root}|work|x", False),
        ("|homework|x", False),
    ],
)
def test_machine_path_pattern(line: str, is_machine_path: bool) -> None:
    assert bool(MACHINE_PATH.search(line.replace("|", "/"))) is is_machine_path
