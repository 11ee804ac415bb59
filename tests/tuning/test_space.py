"""The space: checked against the configuration, drawn without impossible points."""

import random
from typing import Annotated, Any, Literal

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from pydantic import Field, TypeAdapter, ValidationError

from models.data.schema import UserError
from models.data.strict import Strict
from ray_jobs.config import Config, load
from tuning.parameters import SPACE, Choice, Parameter, Range, Value
from tuning.space import Distribution, Space, applied, value_at

WIDTH, HEADS, RATE = "network.width", "network.behaviour.heads", "train.loop.learning_rate"
LAYERS, RANK = "network.text.trainable_layers", "network.text.lora.rank"


@pytest.fixture(scope="module")
def config() -> Config:
    return load("demo", ["network.behaviour.encoder=transformer"])


def parsed(tree: Any) -> Range | Choice:
    """A parameter as YAML gives it."""
    parameter: Range | Choice = TypeAdapter(Parameter).validate_python(tree)
    return parameter


def at_random(draw: random.Random) -> Any:
    def suggest(path: str, distribution: Distribution) -> Value:
        if isinstance(distribution, CategoricalDistribution):
            return draw.choice(distribution.choices)
        if isinstance(distribution, FloatDistribution):
            return draw.uniform(distribution.low, distribution.high)
        return draw.randint(distribution.low, distribution.high)

    return suggest


def test_no_point_of_the_built_in_space_is_impossible(config: Config, seed: int) -> None:
    space, draw = Space(None, config, ["default"]), random.Random(seed)
    assert set(space.parameters) == {path.replace("*", "default") for path in SPACE}
    for _ in range(300):
        point = space.draw(at_random(draw))
        assert space.impossible(point) is None
        assert (point[LAYERS] is None) == (point[RANK] is not None)
        assert (HEADS in point) == (point["network.behaviour.encoder"] == "transformer")


def test_a_point_is_set_in_the_configuration_and_nothing_else(config: Config) -> None:
    changed = applied(config, {WIDTH: 32, RATE: 0.002})
    assert changed.network.width == 32 and changed.train.loop.learning_rate == 0.002
    assert applied(changed, {WIDTH: 64, RATE: config.train.loop.learning_rate}) == config
    with pytest.raises(ValidationError):
        applied(config, {WIDTH: 34})


def test_defaults_are_the_configuration_where_it_lies_in_the_space(config: Config) -> None:
    defaults = Space(None, config).defaults()
    assert defaults[WIDTH] == 64 and defaults[LAYERS] == 2 and defaults["network.dropout"] == 0.25
    whole = Space(None, config, ["default"])
    same = applied(config, whole.defaults())
    assert set(whole.defaults()) == set(whole.parameters)
    assert same.train == config.train and same.network.text == config.network.text
    outside = Space({WIDTH: Choice(values=(16, 32)), RATE: None}, config).defaults()
    assert outside == {RATE: config.train.loop.learning_rate}


def test_yaml_gives_lists_and_ranges_and_numbers_as_the_key_takes_them(config: Config) -> None:
    given = {
        WIDTH: parsed([32, 64]),
        "network.behaviour.layers": parsed({"low": 1, "high": 4}),
        "network.dropout": parsed({"low": 0, "high": 1 / 2}),
        RATE: None,
    }
    kinds = {}
    Space(given, config).draw(lambda path, how: kinds.setdefault(path, type(how).__name__))
    assert kinds == {
        WIDTH: "CategoricalDistribution",
        "network.behaviour.layers": "IntDistribution",
        "network.dropout": "FloatDistribution",
        RATE: "FloatDistribution",
    }


def test_a_parameter_is_drawn_after_what_it_depends_on(config: Config) -> None:
    space = Space({HEADS: None, "network.behaviour.encoder": None}, config)
    assert list(space.parameters) == ["network.behaviour.encoder", HEADS]
    fixed = applied(config, {"network.behaviour.encoder": "cnn"})  # not searched: it stays so
    assert Space({HEADS: None}, fixed).defaults() == {}


def test_a_grid_has_every_possible_point_once(config: Config) -> None:
    heads = {WIDTH: parsed([32, 48]), HEADS: parsed([4, 32])}
    points = Space(heads, config).grid()
    assert points == [{WIDTH: 32, HEADS: 4}, {WIDTH: 32, HEADS: 32}, {WIDTH: 48, HEADS: 4}]
    steps = Space({"network.dropout": parsed({"low": 0, "high": 0.4, "step": 0.2})}, config).grid()
    assert [point["network.dropout"] for point in steps] == pytest.approx([0, 0.2, 0.4])
    layers = {LAYERS: parsed({"low": 0, "high": 1}), "train.loop.frozen_epochs": parsed([0, 1])}
    layers["train.loop.frozen_epochs"] = Choice(values=(0, 1), when={LAYERS: (1,)})
    assert len(Space(layers, config).grid()) == 3  # frozen epochs mean nothing without layers
    with pytest.raises(UserError, match="learning_rate: a grid needs a list"):
        Space({RATE: None}, config).grid()


def test_all_features_that_a_point_may_have_are_known_before_it_is_drawn(config: Config) -> None:
    texts, kept = "features.max_texts", "features.history.kept_texts"
    given = {WIDTH: parsed([32, 64]), texts: parsed([1, 6]), kept: Choice(values=(16, 32))}
    points = Space(given, config).features()
    assert points == [{texts: t, kept: k} for t in (1, 6) for k in (16, 32)]
    given[kept] = Choice(values=(16, 32), when={texts: (6,)})
    space, draw = Space(given, config), random.Random(0)
    known = {applied(config, point).features for point in space.features()}
    assert {applied(config, space.draw(at_random(draw))).features for _ in range(50)} < known
    assert Space({WIDTH: None}, config).features() == [{}]
    steps = Space({texts: parsed({"low": 2, "high": 6, "step": 2})}, config)
    assert [point[texts] for point in steps.features()] == [2, 4, 6]


class Adapters(Strict):
    rank: int = 8


class Loss(Strict):
    weight: Annotated[float, Field(gt=0)] | Literal["balanced"] = 1.0
    focal: float = 0.0


class Network(Strict):
    width: int = 8
    adapters: Adapters | None = None
    losses: dict[str, Loss] = Field(default_factory=dict)


class Tree(Strict):
    network: Network = Network()


def test_an_optional_part_is_switched_on_by_a_value_in_it_and_off_by_none() -> None:
    rank = "network.adapters.rank"
    space = Space({rank: Choice(values=(None, 4))}, Tree())
    assert space.defaults() == {rank: None}
    assert applied(Tree(), {rank: None}) == Tree()
    on = applied(Tree(), {rank: 4})
    assert on.network.adapters == Adapters(rank=4) and value_at(on, rank) == 4
    only_without = Range(low=4, high=16, when={rank: (None,)})
    both = Space({rank: Choice(values=(None, 4)), "network.width": only_without}, Tree())
    assert both.defaults() == {rank: None, "network.width": 8}
    assert both.draw(lambda path, how: 4) == {rank: 4}


def test_the_names_of_a_mapping_are_free() -> None:
    focal, weight = "network.losses.default.focal", "network.losses.default.weight"
    space = Space({focal: Range(low=0, high=2), weight: Choice(values=(1.0, "balanced"))}, Tree())
    assert applied(Tree(), {focal: 1.5}).network.losses == {"default": Loss(focal=1.5)}
    assert set(space.draw(lambda path, how: 1.0)) == {focal, weight}
    assert space.defaults() == {focal: 0.0, weight: 1.0}
    assert applied(Tree(), space.defaults()).network.losses == {"default": Loss()}
    with pytest.raises(UserError, match=r"no parameter 'network\.losses"):
        Space({"network.losses.focal": Range(low=0, high=2)}, Tree())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"network.widht": None}, "no built-in range"),
        ({"network.widht": [32]}, "no parameter 'network.widht'; the nearest is 'network.width'"),
        ({"seed": [1, 2]}, "no parameter 'seed'"),
        ({"train.loop.epochs": [3, 9]}, "no parameter .train.loop.epochs."),
        ({"network.text": [1]}, "no parameter 'network.text'"),
        ({WIDTH: [32, 4]}, "network.width: 4: Input should be greater than or equal to 8"),
        (
            {"network.dropout": {"low": 0, "high": 1.5}},
            "dropout: 1.5: Input should be less",
        ),
        ({"network.width": {"low": 8.5, "high": 64}}, "network.width: whole numbers"),
        ({"network.text.encoder": {"low": 1, "high": 2}}, "encoder: not a number"),
        (
            {"features.max_events": {"low": 16, "high": 128}},
            "max_events: each value is a snapshot of its own",
        ),
    ],
)
def test_bad_spaces_are_one_line(config: Config, given: dict[str, Any], message: str) -> None:
    space = {path: None if tree is None else parsed(tree) for path, tree in given.items()}
    with pytest.raises(UserError, match=message) as caught:
        Space(space, config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("{low: 2, high: 2}", "tune.space.network.width.*: an empty range: low 2"),
        ("{low: 0, high: 2, log: true}", "starts above 0"),
        ("{low: 1, high: 4, step: 1, log: true}", "not both"),
        ("[]", "at least 1 item"),
        ("5", "tune.space"),
        ("{hihg: 2}", "tune.space.network.width.range.low: Field required"),
    ],
)
def test_an_empty_range_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load("demo", [f"tune.space={{network.width: {override}}}"])
