"""One YAML, one typed tree: strict, unknown keys refused with the nearest known one."""

import difflib
import re
import typing
from datetime import date
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from models.data.buckets import MOST
from models.data.features import FeatureConfig, check_profile
from models.data.resample import ResampleConfig
from models.data.schema import UserError, protected_table
from models.data.source import MAPPABLE, Source
from models.data.strict import Strict
from models.data.tasks import Roles, Split, Task, check_binary
from models.data.vocabulary import Vocabulary
from models.nets.config import (
    EventPretraining,
    FitConfig,
    NetworkConfig,
    ScoringPrecision,
    TextPretraining,
)
from models.scoring.answer import check_tasks
from models.scoring.config import StackConfig
from models.scoring.policy import PolicyConfig
from models.scoring.scorecard import ScorecardConfig
from ray_jobs.market.world import SimulateConfig
from tuning.config import TuneConfig

BUILT_IN = Path(__file__).parent / "configs"
# user:password@, as SQLAlchemy and Arrow take it, and what database drivers take it by
_PASSWORD = re.compile(r"://[^:/]*:[^@]*@|[?&](password|passwd)=")


class Profile(Strict):
    """The declared columns of `users`, and of `protected` (for `tune`'s `fairness_gap`)."""

    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()


class WandbConfig(Strict):
    """Where Weights & Biases keeps the runs; its key comes from its own environment."""

    project: str
    entity: str | None = None


class TrainConfig(Strict):
    """How `train` runs: ranks, failures, and the loop that each rank runs."""

    workers: int | tuple[int, int] = 2  # [least, most]: as many as the cluster has room for
    sharding: Literal["ddp", "fsdp"] = "ddp"  # fsdp: for an encoder that is too large for a GPU
    gpu: bool | None = None  # of pretrain and tune too; None: where the cluster has some by then
    cpus_per_worker: float = Field(default=0.5, gt=0)  # 1 each would starve Ray Data on 2 cores
    max_failures: int = Field(default=2, ge=0)
    select_rows: int = Field(default=4000, ge=1)  # of the select role, scored after each epoch
    checkpoint_steps: int | None = Field(default=None, ge=1)  # None: after each epoch only
    wandb: WandbConfig | None = None  # beside TensorBoard's files, which are always written
    cross_fit: int | None = Field(default=None, ge=2)  # folds of the fit role, to calibrate on too
    resample: ResampleConfig | None = None  # of the fit role, a rank's rows at a time
    loop: FitConfig = FitConfig()

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_range(cls, value: Any) -> Any:
        several = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
        if not all(type(one) is int for one in several):
            raise ValueError(f"expected a number, or [least, most], not {value!r}")
        return value

    @model_validator(mode="after")
    def _can_run(self) -> "TrainConfig":
        both = self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)
        if not 1 <= both[0] <= both[1]:
            raise ValueError(f"workers: expected a number or [least, most], not {self.workers}")
        if self.sharding == "fsdp" and self.loop.frozen_epochs:
            raise ValueError(
                "sharding: fsdp needs loop.frozen_epochs 0; a rank that keeps encodings would not "
                "be there when the others gather the encoder's weights"
            )
        return self


class PretrainConfig(Strict):
    """What `pretrain` makes; a part that is null is left out."""

    text: TextPretraining | None = TextPretraining()
    behaviour: EventPretraining | None = EventPretraining()


class BackfillConfig(Strict):
    """Whom to score as of when; None: the test date of the split."""

    as_of: date | None = None
    workers: int = Field(default=2, ge=1)


class ServeConfig(Strict):
    """The endpoint: where it listens, how it scales, what it refuses."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    token_env: str = "RAYCREDIT_API_TOKEN"
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=4, ge=1)
    max_ongoing_requests: int = Field(default=32, ge=1)
    max_batch: int = Field(default=16, ge=1)
    timeout_s: float = Field(default=5.0, gt=0)
    cpus_per_replica: float = Field(default=0.5, gt=0)

    @model_validator(mode="after")
    def _least_and_most(self) -> "ServeConfig":
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas: {self.min_replicas} is more than max_replicas {self.max_replicas}"
            )
        return self


class ClusterConfig(Strict):
    """How to start Ray when there is none to join. `num_cpus` is logical."""

    num_cpus: int | None = None
    object_store_mb: int = Field(default=512, ge=80)


class Config(Strict):
    """Everything that a job needs to know."""

    lake: str  # a folder that all nodes share, or an s3:// or gs:// URL
    work: str  # a folder that all nodes share: snapshots, training runs, artifacts and reports
    seed: int = Field(default=20240501, ge=0, le=2_000_000_000)  # trees take 32 bits
    secret_file: str | None = None  # else the environment variable RAYCREDIT_SECRET
    buckets: int | None = Field(default=None, ge=1, le=MOST)  # of users; None: by the input's size
    simulate: SimulateConfig | None = None
    sources: dict[str, Source]
    profile: Profile = Profile()
    tasks: dict[str, Task]
    roles: Roles
    split: Split
    features: FeatureConfig = FeatureConfig()
    network: NetworkConfig = NetworkConfig()
    pretrain: PretrainConfig = PretrainConfig()
    train: TrainConfig = TrainConfig()
    scoring_precision: ScoringPrecision = "fp32"  # of the text encoder in every score
    stack: StackConfig = StackConfig()
    tune: TuneConfig = TuneConfig()
    scorecard: ScorecardConfig = ScorecardConfig()
    policy: PolicyConfig = PolicyConfig()
    backfill: BackfillConfig = BackfillConfig()
    serve: ServeConfig = ServeConfig()
    cluster: ClusterConfig = ClusterConfig()
    oracle: str | None = None  # the simulator's true probabilities; read by `evaluate` only

    @model_validator(mode="after")
    def _no_url_holds_a_password(self) -> "Config":
        """Reports, the lake's account of runs, replicas and trials are given all of this."""
        urls = {"lake": self.lake, "tune.storage": self.tune.storage or ""}
        urls |= {f"sources.{name}.path": source.path for name, source in self.sources.items()}
        for key, url in urls.items():
            if _PASSWORD.search(url):
                raise ValueError(
                    f"{key}: no password in a URL, for reports show it; put it where the client "
                    "looks for one itself, such as PGPASSWORD or AWS_SECRET_ACCESS_KEY"
                )
        return self

    @model_validator(mode="after")
    def _names_are_free(self) -> "Config":
        check_tasks(self.tasks)
        profile = self.profile
        check_profile(
            Vocabulary(event_types=(), numeric=profile.numeric, categorical=profile.categorical)
        )
        for place, name in enumerate(profile.protected):
            others = protected_table(profile.protected[:place]).schema.names
            if name in (*MAPPABLE["protected"], *others):
                raise ValueError(f"profile.protected: {name!r} is the name of another column")
        return self

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "Config":
        if self.buckets is not None and self.buckets & (self.buckets - 1):
            raise ValueError(f"buckets: {self.buckets} is not a power of two")
        if "://" in self.lake and (odd := next((c for c in "?#%" if c in self.lake), None)):
            raise ValueError(f"lake: no {odd} in a URL; AWS_ENDPOINT_URL says where S3 is")
        if "://" in self.work:
            raise ValueError("work: expected a folder that all nodes share, not a URL")
        for role, kind in (("pd", "binary"), ("fraud", "binary"), ("spend", "amount")):
            name = getattr(self.roles, role)
            if name is None:
                continue
            if name not in self.tasks:
                raise ValueError(
                    f"roles.{role}: no task {name!r}; there is {', '.join(self.tasks)}"
                )
            if self.tasks[name].kind != kind:
                raise ValueError(f"roles.{role}: task {name!r} must be {kind}")
        check_binary("network.loss.binary", self.network.loss.binary, self.tasks)
        if self.train.resample is not None:
            check_binary("train.resample.task", [self.train.resample.task], self.tasks)
        if self.train.cross_fit is not None and self.split.schedule != "given":
            raise ValueError(
                "train.cross_fit: for split.schedule given; where roles stand in time order, the "
                "calibrate role is nearer to what will be scored than any fold of the fit role"
            )
        if not any(source.table == "events" for source in self.sources.values()):
            raise ValueError("sources: at least one must map to the events table")
        stated = {s.currency.upper(): name for name, s in self.sources.items() if s.currency}
        if len(stated) > 1:
            (one, first), (other, second) = list(stated.items())[:2]
            raise ValueError(
                f"sources.{second}.currency: {other}, but sources.{first} has {one}; amounts are "
                "added up: expected one currency, with the others converted in columns.amount"
            )
        for name, source in self.sources.items():
            declared = {
                "users": (*self.profile.numeric, *self.profile.categorical),
                "protected": self.profile.protected,
            }.get(source.table)
            if declared is None:
                continue
            own = {"user_id", "valid_from", "available_at"}
            unknown = [c for c in source.columns if c not in own and c not in declared]
            if unknown:
                raise ValueError(
                    f"sources.{name}.columns: {unknown[0]!r} is not declared in profile"
                )
        return self


def load(path: str, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a YAML file, or a built-in one by its name, with `a.b=c` overrides.

    Raises UserError with one line: the file, the key, what was expected.
    """
    file = Path(path)
    if not file.exists() and (BUILT_IN / f"{path}.yaml").exists():
        file = BUILT_IN / f"{path}.yaml"
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: no such configuration file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text") from error
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path}: not YAML: {line}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a mapping of keys was expected")
    for override in overrides:
        _set(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}") from error


def _set(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: expected key=value, such as train.workers=4")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"--set {override}: {parent!r} is not a mapping")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not YAML") from error


def first_fault(error: ValidationError) -> str:
    """The first fault as one line, an unknown key with the nearest known one."""
    fault = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] != "extra_forbidden":
        message = fault["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    known = _keys_at(Config, fault["loc"][:-1])
    near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.0)
    return f"{where}: unknown key; the nearest is {near[0]!r}" if near else f"{where}: unknown key"


def _keys_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """The keys of the configuration node at a location."""
    for part in loc:
        field = model.model_fields.get(str(part))
        candidates = [field.annotation] if field else []
        while candidates:
            kind = candidates.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
                break
            candidates.extend(typing.get_args(kind))
    return list(model.model_fields)
