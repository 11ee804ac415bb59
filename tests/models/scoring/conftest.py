"""A model with experts beside its network."""

from pathlib import Path

import pytest

from models.data.batch import Tokenizer
from models.data.features import FeatureConfig, Features
from models.data.stats import Stats
from models.data.tasks import Task
from models.nets.network import Network
from models.scoring import artifact, trees
from models.scoring.artifact import ModelSpec
from models.scoring.expert import Experts, fit_experts
from models.scoring.fit_calibration import calibrators_of, judge
from models.scoring.predict import Predictor
from models.scoring.scorer import Scorer
from models.scoring.stack import ALONE, NETWORK

SHARES = {NETWORK: 0.5, "lightgbm": 0.3, "tfidf": 0.2}


@pytest.fixture(scope="session")
def experts(known: Features, tasks: dict[str, Task]) -> Experts:
    """A few rounds: more would leave no doubt of the few rows that there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees, "MAX_ROUNDS", 20)
        return fit_experts(("lightgbm", "tfidf"), known, known, tasks, seed=3)


@pytest.fixture(scope="session")
def stacked_spec(
    spec: ModelSpec,
    experts: Experts,
    trained: Network,
    known: Features,
    stats: Stats,
    tokenizer: Tokenizer,
    tasks: dict[str, Task],
    feature_config: FeatureConfig,
) -> ModelSpec:
    """Experts have their say in two tasks of three, in shares that do not depend on luck."""
    predictor = Predictor(trained, stats, tokenizer, feature_config.max_tokens)
    found = calibrators_of([judge(predictor, known, tasks, experts)], tasks, 5)
    own = {}
    for name, stack in found.stack.items():
        weights = ALONE if name == "fraud" else SHARES
        replicates = tuple(weights for _ in found.replicates.get(name, ()))
        own[name] = stack.model_copy(update={"weights": weights, "replicates": replicates})
    return spec.model_copy(update={"stack": own})


@pytest.fixture(scope="session")
def stacked_path(
    stacked_spec: ModelSpec,
    experts: Experts,
    trained: Network,
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """On disk. A test that changes it works on a copy."""
    folder = tmp_path_factory.mktemp("stacked")
    return artifact.save(folder, stacked_spec, trained, tokenizer, experts)


@pytest.fixture(scope="session")
def stacked(stacked_path: Path) -> Scorer:
    return Scorer.load(stacked_path)
