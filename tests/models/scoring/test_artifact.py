"""A model on disk: the same after a round trip, and refused when anything in it has changed."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from models.data.batch import Batch, Tokenizer
from models.data.features import Features
from models.data.schema import UserError
from models.nets.network import Network
from models.scoring import artifact
from models.scoring.artifact import ModelSpec
from models.scoring.expert import Experts

FILES = (
    "encoder/config.json",
    "manifest.json",
    "model.json",
    "model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
)


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy of the trained model, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def sign(folder: Path) -> None:
    """Write the manifest anew, as somebody who changed a file on purpose would."""
    hashes = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in files(folder)
        if name != "manifest.json"
    }
    content = json.dumps({"format": 4, "files": hashes}, indent=1, sort_keys=True)
    (folder / "manifest.json").write_text(content, encoding="utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        artifact.load(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_it_holds_these_files_and_is_named_by_its_hash(saved: Path) -> None:
    assert files(saved) == list(FILES)
    assert saved.name == artifact.sha256(saved)[:16]
    manifest = json.loads((saved / "manifest.json").read_text(encoding="utf-8"))
    assert sorted(manifest["files"]) == [name for name in FILES if name != "manifest.json"]


def test_what_is_loaded_answers_as_what_was_saved(
    saved: Path, spec: ModelSpec, trained: Network, tokenizer: Tokenizer, batch: Batch
) -> None:
    loaded = artifact.load(saved)
    assert loaded.spec == spec
    assert loaded.sha256 == hashlib.sha256((saved / "manifest.json").read_bytes()).hexdigest()
    with torch.no_grad():
        before, after = trained.eval()(batch), loaded.network.eval()(batch)
    assert torch.equal(before.weight_BM, after.weight_BM)
    for name, output in before.tasks.items():
        assert torch.equal(output, after.tasks[name]), name
    texts = ["money is short again !", "", "never heard"]
    one, two = (t(texts, truncation=True, max_length=16) for t in (tokenizer, loaded.tokenizer))
    assert one["input_ids"] == two["input_ids"]


def test_the_same_model_is_the_same_folder(
    saved: Path, spec: ModelSpec, trained: Network, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Saved twice, saved elsewhere, after it was loaded, and after it was used."""
    paths = [artifact.save(tmp_path, spec, trained, tokenizer) for _ in range(2)]
    loaded = artifact.load(saved)
    for max_length in (3, 9):
        paths.append(artifact.save(tmp_path, loaded.spec, loaded.network, loaded.tokenizer))
        loaded.tokenizer(["money is short again"], truncation=True, max_length=max_length)
    paths.append(artifact.save(tmp_path, loaded.spec, loaded.network, loaded.tokenizer))
    assert paths == [tmp_path / saved.name] * 5
    assert [p.name for p in tmp_path.iterdir()] == [saved.name]


def test_another_model_is_another_folder(
    saved: Path,
    spec: ModelSpec,
    trained: Network,
    tokenizer: Tokenizer,
    make_network: Callable[..., Network],
    tmp_path: Path,
) -> None:
    other_spec = spec.model_copy(update={"trained_on": {"seed": "4"}})
    paths = {
        artifact.save(tmp_path, other_spec, trained, tokenizer),
        artifact.save(tmp_path, spec, make_network(8), tokenizer),
    }
    assert len({saved.name, *(p.name for p in paths)}) == 3


def test_loading_needs_nothing_but_the_folder(
    spec: ModelSpec, trained: Network, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    text = spec.network.text.model_copy(update={"encoder": "/no/such/encoder"})
    network = spec.network.model_copy(update={"text": text})
    path = artifact.save(tmp_path, spec.model_copy(update={"network": network}), trained, tokenizer)
    moved = shutil.move(path, tmp_path / "elsewhere")
    assert artifact.load(Path(moved)).sha256.startswith(path.name)


def test_nothing_is_unpickled(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "Unpickler", refuse)
    for where in (pickle, torch):
        monkeypatch.setattr(where, "load", refuse)
    artifact.load(saved)
    assert {Path(name).suffix for name in files(saved)} == {".json", ".safetensors"}


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_one_changed_byte_is_named(model: Path, name: str) -> None:
    content = (model / name).read_bytes()
    for at in (0, len(content) // 3, len(content) - 1):
        (model / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert refusal(model) == f"{model / name}: changed since it was written (SHA-256 differs)"
        with pytest.raises(UserError, match="changed since it was written"):
            artifact.load_spec(model)  # even when the damage is in the weights
    (model / name).write_bytes(content)
    artifact.load(model)


def test_no_byte_of_the_manifest_may_change(model: Path) -> None:
    content = (model / "manifest.json").read_bytes()
    for at, byte in enumerate(content):
        other = 13 if byte == 10 else byte ^ 32  # another line ending, letters in the other case
        (model / "manifest.json").write_bytes(content[:at] + bytes([other]) + content[at + 1 :])
        with pytest.raises(UserError):
            artifact.verify(model)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(model: Path, name: str) -> None:
    (model / name).unlink()
    said = refusal(model)
    assert name in said and ("missing" in said or "not a model" in said)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "encoder/pytorch_model.bin", "tokenizer/.hidden", "notes.txt"]
)
def test_an_added_file_is_named(model: Path, name: str) -> None:
    (model / name).write_bytes(b"\x80\x04.")
    assert refusal(model) == f"{model / name}: is not in the manifest"


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        '{"format": 4}',
        '{"files": {}}',
        '{"format": 4, "files": [1, 2]}',
        '{"format": 4, "files": null}',
        "\udcff",
    ],
)
def test_a_folder_with_another_manifest_is_no_model(tmp_path: Path, manifest: str) -> None:
    content = manifest.encode(errors="surrogateescape")
    (tmp_path / "manifest.json").write_bytes(content)
    assert refusal(tmp_path) == f"{tmp_path}: not a model: no readable manifest.json"


def test_what_is_no_model_is_said_to_be_none(tmp_path: Path, saved: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", saved / "model.json"):
        assert refusal(path) == f"{path}: not a model: no readable manifest.json"


def test_another_format_is_named(model: Path) -> None:
    manifest = json.loads((model / "manifest.json").read_text(encoding="utf-8"))
    (model / "manifest.json").write_text(json.dumps(manifest | {"format": 3}), encoding="utf-8")
    assert refusal(model) == f"{model}: format 3; expected 4"


def another_field(folder: Path) -> None:
    spec = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    (folder / "model.json").write_text(json.dumps(spec | {"mood": "good"}), encoding="utf-8")


def another_precision(folder: Path) -> None:
    spec = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    (folder / "model.json").write_text(json.dumps(spec | {"precision": "bf16"}), encoding="utf-8")


def fewer_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["fusion.query.weight"]
    save_file(weights, folder / "model.safetensors")


def other_shapes(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["fusion.query.weight"] = torch.zeros(1, 99)
    save_file(weights, folder / "model.safetensors")


def broken_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"nothing")


def another_encoder(folder: Path) -> None:
    (folder / "encoder" / "config.json").write_text('{"model_type": "nope"}', encoding="utf-8")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        another_field,
        another_precision,
        fewer_weights,
        other_shapes,
        broken_weights,
        another_encoder,
        no_tokenizer,
    ],
)
def test_a_model_of_another_version_is_refused(model: Path, change: Callable[[Path], None]) -> None:
    change(model)
    sign(model)
    assert refusal(model).startswith(f"{model}: written by another version of raycredit: ")


def test_a_save_that_fails_leaves_nothing(
    spec: ModelSpec,
    trained: Network,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(artifact, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        artifact.save(tmp_path / "models", spec, trained, tokenizer)
    assert list((tmp_path / "models").iterdir()) == []


def test_every_caller_scores_in_full_precision(spec: ModelSpec) -> None:
    assert spec.precision == "fp32"
    with pytest.raises(ValidationError):
        ModelSpec.model_validate(spec.model_dump() | {"precision": "bf16"})


TREES = tuple(f"experts/lightgbm/{k}.txt" for k in range(3))
EXPERTS = ("experts/lightgbm/columns.json", *TREES, "experts/tfidf/terms.json")


@pytest.fixture
def stacked(stacked_path: Path, tmp_path: Path) -> Path:
    """A copy of the stacked model, to be damaged."""
    return Path(shutil.copytree(stacked_path, tmp_path / "stacked"))


def test_a_stack_is_one_model(
    stacked_path: Path, experts: Experts, known: Features, tmp_path: Path
) -> None:
    assert files(stacked_path) == sorted([*FILES, *EXPERTS])
    loaded = artifact.load(stacked_path)
    for name, expert in experts.items():
        for task in expert.tasks:
            before, after = (
                e.raw(task, e.read(known.frame)) for e in (expert, loaded.experts[name])
            )
            assert np.array_equal(before, after)
    again = artifact.save(tmp_path, loaded.spec, loaded.network, loaded.tokenizer, loaded.experts)
    assert again.name == stacked_path.name


def test_a_model_without_a_stack_was_written_before_there_were_any(model: Path) -> None:
    spec = json.loads((model / "model.json").read_text(encoding="utf-8"))
    assert spec.pop("stack") == {}
    (model / "model.json").write_text(json.dumps(spec), encoding="utf-8")
    sign(model)
    assert artifact.load(model).experts == {}


@pytest.mark.parametrize("name", EXPERTS)
def test_changed_and_missing_experts_are_named(stacked: Path, name: str) -> None:
    path = stacked / name
    content = path.read_bytes()
    path.write_bytes(content[:-9] + b"x" + content[-8:])
    assert refusal(stacked) == f"{path}: changed since it was written (SHA-256 differs)"
    path.unlink()
    assert refusal(stacked) == f"{path}: is missing"


def no_experts(folder: Path) -> None:
    shutil.rmtree(folder / "experts")


def no_trees(folder: Path) -> None:
    (folder / TREES[0]).unlink()


def other_trees(folder: Path) -> None:
    (folder / TREES[0]).write_text("tree of another kind", encoding="utf-8")


def trees_of_other_columns(folder: Path) -> None:
    path = folder / EXPERTS[0]
    columns = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(columns | {"social": []}), encoding="utf-8")


def no_columns(folder: Path) -> None:
    (folder / EXPERTS[0]).unlink()


def other_terms(folder: Path) -> None:
    (folder / EXPERTS[-1]).write_text('{"terms": []}', encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [no_experts, no_trees, other_trees, trees_of_other_columns, no_columns, other_terms],
)
def test_experts_that_are_no_part_of_the_model_are_refused(
    stacked: Path, change: Callable[[Path], None]
) -> None:
    change(stacked)
    sign(stacked)
    assert "experts" in refusal(stacked)
