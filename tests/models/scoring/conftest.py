"""A model with an expert beside its network."""

from pathlib import Path

import pytest

from models.data.batch import Tokenizer
from models.data.features import FeatureConfig, Features
from models.data.stats import Stats
from models.data.tasks import Task
from models.nets.network import Network
from models.scoring import artifact
from models.scoring import expert as expert_module
from models.scoring.artifact import ModelSpec
from models.scoring.expert import Expert, fit_expert
from models.scoring.fit_calibration import calibrators_of
from models.scoring.predict import Predictor
from models.scoring.scorer import Scorer
from models.scoring.stack import ALONE, LIGHTGBM, NETWORK

SHARES = {NETWORK: 0.6, LIGHTGBM: 0.4}


@pytest.fixture(scope="session")
def expert(known: Features, tasks: dict[str, Task]) -> Expert:
    """A few rounds: more would leave no doubt of the few rows that there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expert_module, "MAX_ROUNDS", 20)
        return fit_expert(known, known, tasks, seed=3)


@pytest.fixture(scope="session")
def stacked_spec(
    spec: ModelSpec,
    expert: Expert,
    trained: Network,
    known: Features,
    stats: Stats,
    tokenizer: Tokenizer,
    tasks: dict[str, Task],
    feature_config: FeatureConfig,
) -> ModelSpec:
    """The expert has its say in two tasks of three, in shares that do not depend on luck."""
    predictor = Predictor(trained, stats, tokenizer, feature_config.max_tokens)
    found = calibrators_of(predictor, known, tasks, 5, expert)
    assert found.stack is not None
    own = {}
    for name, stack in found.stack.tasks.items():
        weights = ALONE if name == "fraud" else SHARES
        replicates = tuple(weights for _ in found.replicates.get(name, ()))
        own[name] = stack.model_copy(update={"weights": weights, "replicates": replicates})
    changed = found.stack.model_copy(update={"tasks": own})
    return spec.model_copy(update={"stack": changed})


@pytest.fixture(scope="session")
def stacked_path(
    stacked_spec: ModelSpec,
    expert: Expert,
    trained: Network,
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """On disk. A test that changes it works on a copy."""
    folder = tmp_path_factory.mktemp("stacked")
    return artifact.save(folder, stacked_spec, trained, tokenizer, expert)


@pytest.fixture(scope="session")
def stacked(stacked_path: Path) -> Scorer:
    return Scorer.load(stacked_path)
