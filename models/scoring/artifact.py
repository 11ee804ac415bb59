"""A model on disk: safetensors, JSON and a manifest of SHA-256 hashes. Nothing is unpickled.

manifest.json         the other files' hashes; its own hash names the model
model.json            tasks, features, network, stats, calibration, scorecard, policy
model.safetensors     the weights
experts/<name>/…      what a stack has beside the network: LightGBM's own text, terms as JSON
encoder/config.json   the text encoder's architecture
tokenizer/…           the tokenizer's files
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.data.batch import Tokenizer
from models.data.features import FeatureConfig
from models.data.schema import UserError
from models.data.stats import Stats
from models.data.strict import Strict
from models.data.tasks import Roles, Task
from models.nets.config import ARCHITECTURE, NetworkConfig, ScoringPrecision
from models.nets.network import Network
from models.nets.text import empty_encoder
from models.scoring.calibrate import AmountCalibrator, BinaryCalibrator
from models.scoring.expert import Experts, load_experts, write_experts
from models.scoring.policy import PolicyConfig
from models.scoring.scorecard import ScorecardConfig
from models.scoring.stack import NETWORK, TaskStack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MANIFEST = "manifest.json"
MODEL = "model.json"
WEIGHTS = "model.safetensors"
EXPERTS = "experts"
FILES = 2  # raised when the files hold something else
FORMAT = FILES + ARCHITECTURE  # both only rise, so this does; another one is refused


class ModelSpec(Strict):
    """All of a model but its weights and tokenizer.

    `replicates`: calibrators of bootstrap samples of the rows that calibrate, whose spread is the
    interval of a probability. `stack`: by task, how experts have their say; empty: the network
    alone is the model. `precision`: of the text encoder, the same for every caller.
    `trained_on`: what makes it reproducible (snapshot, table versions, seed).
    """

    tasks: dict[str, Task]
    roles: Roles
    features: FeatureConfig
    network: NetworkConfig
    stats: Stats
    scorecard: ScorecardConfig
    policy: PolicyConfig
    calibrators: dict[str, BinaryCalibrator | AmountCalibrator]
    replicates: dict[str, tuple[BinaryCalibrator, ...]] = Field(default_factory=dict)
    stack: dict[str, TaskStack] = Field(default_factory=dict)
    precision: ScoringPrecision = "fp32"
    trained_on: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A model read from disk and checked against its manifest."""

    sha256: str
    spec: ModelSpec
    network: Network
    tokenizer: Tokenizer
    experts: Experts = field(default_factory=dict)


def save(
    folder: Path,
    spec: ModelSpec,
    network: Network,
    tokenizer: Tokenizer,
    experts: Experts | None = None,
) -> Path:
    """Write a model under `folder/<first 16 digits of its hash>` in one step; return that path."""
    folder.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        (staged / MODEL).write_text(spec.model_dump_json(indent=1), encoding="utf-8")
        weights = {name: value.contiguous() for name, value in network.state_dict().items()}
        save_file(weights, staged / WEIGHTS)
        network.text.encoder.config.save_pretrained(staged / "encoder")
        _save_tokenizer(cast("PreTrainedTokenizerFast", tokenizer), staged / "tokenizer")
        if experts:
            write_experts(experts, staged / EXPERTS, tuple(spec.tasks))
        hashes = {str(p.relative_to(staged)): _sha256(p) for p in _files(staged)}
        (staged / MANIFEST).write_bytes(_manifest(hashes))
        final = folder / sha256(staged)[:16]
        if final.exists():  # the same model: same bytes
            shutil.rmtree(staged)
        else:
            os.replace(staged, final)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return final


def load(folder: Path) -> Artifact:
    """Read a model. Raises UserError when a file is missing, added, or not as it was written."""
    from transformers import AutoTokenizer

    spec = load_spec(folder)
    try:
        network = Network(
            spec.network, spec.features, spec.stats, spec.tasks, empty_encoder(folder / "encoder")
        )
        network.load_state_dict(load_file(folder / WEIGHTS))
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{folder}: written by another version of raycredit: {line}") from error
    experts = _experts(folder / EXPERTS, spec)
    return Artifact(sha256(folder), spec, network, cast(Tokenizer, tokenizer), experts)


def load_spec(folder: Path) -> ModelSpec:
    """What a model is, without its weights; checked as `load` does. Raises UserError."""
    verify(folder)
    try:
        return ModelSpec.model_validate_json((folder / MODEL).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{folder}: written by another version of raycredit: {line}") from error


def verify(folder: Path) -> None:
    """Check every file against the manifest. Raises UserError naming the first that differs."""
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = json.loads(content)
        version, hashes = manifest["format"], dict[str, str](manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: not a model: no readable {MANIFEST}") from error
    if version != FORMAT:
        raise UserError(f"{folder}: format {version}; expected {FORMAT}")
    if content != _manifest(hashes):
        raise UserError(f"{folder / MANIFEST}: changed since it was written")
    present = {str(p.relative_to(folder)) for p in _files(folder)} - {MANIFEST}
    for name in sorted(present ^ set(hashes)):
        what = "is not in the manifest" if name in present else "is missing"
        raise UserError(f"{folder / name}: {what}")
    for name, expected in hashes.items():
        if _sha256(folder / name) != expected:
            raise UserError(f"{folder / name}: changed since it was written (SHA-256 differs)")


def sha256(folder: Path) -> str:
    """The hash that names a model: that of its manifest."""
    return _sha256(folder / MANIFEST)


def _experts(folder: Path, spec: ModelSpec) -> Experts:
    """All that the stacks of the tasks speak of."""
    experts = load_experts(folder, spec.tasks)
    having = {(name, task) for name, expert in experts.items() for task in expert.tasks}
    for task, stack in spec.stack.items():
        for name in stack.alone:
            if name != NETWORK and (name, task) not in having:
                raise UserError(f"{folder / name}: nothing on tasks.{task}")
    return experts


def _save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Without the length that the last call cut texts to, which would be part of the hash."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(str(folder))


def _manifest(hashes: dict[str, str]) -> bytes:
    return json.dumps({"format": FORMAT, "files": hashes}, indent=1, sort_keys=True).encode()


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
