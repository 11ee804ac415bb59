"""The command: exit codes, and one line for a user's mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs.cli import VERBS, main


def test_a_user_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["train", "-c", "demo", "--set", "train.loop.epcohs=3"])
    error = capsys.readouterr().err
    assert code == 2
    assert error == (
        "raycredit train: demo: train.loop.epcohs: unknown key; the nearest is 'epochs'\n"
    )


def test_a_bad_space_is_one_line_before_anything_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(["tune", "-c", "demo", "--set", "tune.space={network.widht: [32]}"])
    assert code == 2
    assert capsys.readouterr().err == (
        "raycredit tune: tune.space: no parameter 'network.widht'; the nearest is 'network.width'\n"
    )


def test_a_name_that_a_study_cannot_have_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "-c", "demo", "--name", "a b"]) == 2
    assert capsys.readouterr().err.startswith(
        "raycredit tune: the study 'a b': tune.name: String should match pattern"
    )


def test_where_jobs_are_submitted_is_no_cluster_to_join(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # by another test
    assert main(["simulate", "-c", "demo"]) == 2
    assert "RAY_ADDRESS http://127.0.0.1:8265 takes jobs: `ray job" in capsys.readouterr().err


def test_the_module_is_the_command(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "ray_jobs", "ingest", "-c", "nothing.yaml"]
    root = Path(__file__).parents[2]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 2
    assert done.stderr == ("raycredit ingest: nothing.yaml: no such configuration file\n")


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        with pytest.raises(SystemExit) as end:
            main([verb, "--help"])
        assert end.value.code == 0
        assert VERBS[verb].split(" (")[0][:20] in capsys.readouterr().out


def test_promote_wants_an_approver(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["promote", "-c", "demo"])
    assert end.value.code == 2
    assert "--approver" in capsys.readouterr().err
