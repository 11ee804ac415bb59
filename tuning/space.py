"""What is searched: configuration paths, their ranges, and the points that these make up.

A space is checked against the configuration that it searches: a parameter is the dotted path of
one of its keys, and every end of a range is a value which that key takes.
"""

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, TypeVar

from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import BaseModel, ValidationError

from models.data.schema import UserError
from tuning.parameters import EACH, SPACE, Choice, Parameter, Value

Point = dict[str, Value]  # parameter → value
C = TypeVar("C", bound=BaseModel)
# What may be searched. The rest says what is learned and judged: trials would not compare.
SEARCHED = ("network", "train.loop", "train.resample", "features")
BUDGET = "train.loop.epochs"  # given to every trial alike
FEATURES = "features."  # how the keys begin that tell one snapshot from another


Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


class Space:
    """Checked parameters of a configuration, in the order in which they are drawn.

    `given` are the parameters searched, None for the built-in range; without it, all built-in
    ones. `tasks` are the names that a path's * stands for. Raises UserError for an unknown
    parameter, and for a range that its key does not take.
    """

    def __init__(
        self,
        given: Mapping[str, Parameter | None] | None,
        config: BaseModel,
        tasks: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.kinds = dict(_leaves(type(config)))
        wanted = dict.fromkeys(SPACE) if given is None else given
        chosen = {
            path.replace(EACH, name): _known(path, parameter)
            for path, parameter in wanted.items()
            for name in (tasks if EACH in path else ("",))
        }
        for path in chosen:
            _check_path(path, self.kinds)
        self.parameters = _ordered(chosen, self.kinds)
        self._distributions = {path: self._distribution(path) for path in self.parameters}
        for path in self.parameters:
            self._check_ends(path)

    def draw(self, suggest: typing.Callable[[str, Distribution], Value]) -> Point:
        """A point: `suggest` is asked for each parameter that has an effect, in order."""
        point: Point = {}
        for path, distribution in self._distributions.items():
            if self._has_effect(path, point):
                point[path] = suggest(path, distribution)
            elif self.parameters[path].unset:
                point[path] = None
        return point

    def defaults(self) -> Point:
        """The configuration's own values, where they lie in the space."""
        point: Point = {}
        for path, distribution in self._distributions.items():
            value = self._configured(path)
            if not self._has_effect(path, point):
                point |= {path: None} if self.parameters[path].unset else {}
            elif _contains(distribution, value):
                point[path] = value
        return point

    def grid(self) -> list[Point]:
        """Every possible point, once. Raises UserError for a range without steps, and for none."""
        ends = [self._values(path) for path in self.parameters]
        points: dict[tuple[tuple[str, Value], ...], Point] = {}
        for values in product(*ends):
            whole = dict(zip(self.parameters, values, strict=True))
            point = self.draw(lambda path, _, whole=whole: whole[path])  # type: ignore[misc]
            reason = self.impossible(point)
            if reason is None:
                points[tuple(point.items())] = point
        if not points:
            raise UserError(f"tune.space: no point of the grid is possible: {reason}")
        return list(points.values())

    def features(self) -> list[Point]:
        """Every combination of features that a point may have."""
        ends = {path: self._values(path) for path in self.parameters if path.startswith(FEATURES)}
        for path, values in ends.items():
            if self.parameters[path].when:  # where it has no effect it stays as configured
                values.append(self._configured(path))
        return [dict(zip(ends, values, strict=True)) for values in product(*ends.values())]

    def impossible(self, point: Point) -> str | None:
        """Why the configuration refuses a point, if it does."""
        try:
            applied(self.config, point)
        except ValidationError as error:
            return _reason(error)
        return None

    def describe(self) -> dict[str, Any]:
        """The parameters as plain values, to be kept beside what was searched."""
        return {
            path: parameter.model_dump(mode="json", exclude_defaults=True)
            for path, parameter in self.parameters.items()
        }

    def _configured(self, path: str) -> Value:
        """A key's own value; of a name that its mapping does not have, that of a new one."""
        if path in self.kinds or value_at(self.config, path) is not None:
            return value_at(self.config, path)
        return value_at(_with_parents(self.config, path), path)

    def _has_effect(self, path: str, point: Point) -> bool:
        return all(
            point.get(other, self._configured(other)) in values
            for other, values in self.parameters[path].when.items()
        )

    def _distribution(self, path: str) -> Distribution:
        parameter, kinds = self.parameters[path], _types_at(path, self.kinds) or set()
        if isinstance(parameter, Choice):
            return CategoricalDistribution(parameter.values)
        low, high, step = parameter.low, parameter.high, parameter.step
        if path.startswith(FEATURES) and step is None:
            raise UserError(
                f"tune.space.{path}: each value is a snapshot of its own, made before the trials; "
                "give a list of values, or a range's step"
            )
        if float in kinds:
            return FloatDistribution(low, high, log=parameter.log, step=step)
        if int not in kinds:
            raise UserError(f"tune.space.{path}: not a number; give a list of values")
        if any(end is not None and end != int(end) for end in (low, high, step)):
            raise UserError(f"tune.space.{path}: whole numbers were expected")
        return IntDistribution(int(low), int(high), log=parameter.log, step=int(step or 1))

    def _values(self, path: str) -> list[Value]:
        """All values of a parameter, for a grid."""
        distribution = self._distributions[path]
        if isinstance(distribution, CategoricalDistribution):
            return list(distribution.choices)
        if isinstance(distribution, IntDistribution) and not distribution.log:
            return list(range(distribution.low, distribution.high + 1, distribution.step))
        step = distribution.step
        if step is None or distribution.log:
            raise UserError(f"tune.space.{path}: a grid needs a list of values, or a range's step")
        count = round((distribution.high - distribution.low) / step) + 1
        return [distribution.low + k * step for k in range(count)]

    def _check_ends(self, path: str) -> None:
        """Refuse a value that the key alone does not take."""
        parameter = self.parameters[path]
        whole = isinstance(self._distributions[path], IntDistribution)
        if isinstance(parameter, Choice):
            values = parameter.values
        else:
            ends = (parameter.low, parameter.high)
            values = tuple(int(end) for end in ends) if whole else ends
        needs: Point = {other: allowed[0] for other, allowed in parameter.when.items()}
        for value in values:
            try:
                applied(self.config, needs | {path: value})
            except ValidationError as error:
                for fault in error.errors(include_url=False):
                    if ".".join(map(str, fault["loc"])).startswith(path):
                        raise UserError(f"tune.space.{path}: {value!r}: {fault['msg']}") from error


def applied(config: C, point: Mapping[str, Value]) -> C:
    """The configuration with a point's values. Raises pydantic's ValidationError.

    A value inside an optional part switches that part on; None leaves it off.
    """
    tree = config.model_dump(mode="json")
    for path, value in point.items():
        *parents, last = path.split(".")
        node: dict[str, Any] | None = tree
        for parent in parents:
            assert node is not None
            if node.get(parent) is None:
                node[parent] = None if value is None else {}
            node = node[parent]
            if node is None:
                break
        else:
            node[last] = value  # type: ignore[index]  # the loop ended on a part that is on
    return type(config).model_validate(tree)


def _with_parents(config: C, path: str) -> C:
    """The configuration with the part that a key lies in, as it is by default."""
    tree = config.model_dump(mode="json")
    node = tree
    for parent in path.split(".")[:-1]:
        node = node.setdefault(parent, {})
    return type(config).model_validate(tree)


def value_at(config: BaseModel, path: str) -> Value:
    """The value of a key; None where a part that it lies in is switched off."""
    node: Any = config
    for part in path.split("."):
        node = node.get(part) if isinstance(node, dict) else getattr(node, part, None)
    return typing.cast(Value, node)


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, set[Any]]]:
    """Keys that may be searched, with the types of their values; * for the names of a mapping."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        if path == BUDGET or not any(
            f"{path}.".startswith(f"{s}.") or s.startswith(f"{path}.") for s in SEARCHED
        ):
            continue
        kinds = set(_types(field.annotation))
        parts = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        named = ".*" if typing.get_origin(field.annotation) is dict else ""
        for part in parts:
            yield from _leaves(part, f"{path}{named}.")
        if not parts:
            yield path, kinds


def _types(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is Annotated:
        inner = inner[:1]
    if not inner:
        yield annotation
    for one in inner:
        yield from _types(one)


def _types_at(path: str, kinds: Mapping[str, set[Any]]) -> set[Any] | None:
    """The types of a key's values; None where there is no such key."""
    parts = path.split(".")
    starred = (".".join([*parts[:k], "*", *parts[k + 1 :]]) for k in range(len(parts)))
    return next((kinds[one] for one in (path, *starred) if one in kinds), None)


def _known(path: str, parameter: Parameter | None) -> Parameter:
    """The built-in range for None."""
    if parameter is not None:
        return parameter
    if path not in SPACE:
        raise UserError(f"tune.space.{path}: there is no built-in range; give one")
    return SPACE[path]


def _check_path(path: str, kinds: Mapping[str, set[Any]]) -> None:
    if _types_at(path, kinds) is None:
        near = difflib.get_close_matches(path, kinds, n=1, cutoff=0.0)[0]
        raise UserError(f"tune.space: no parameter {path!r}; the nearest is {near!r}")


def _ordered(
    chosen: Mapping[str, Parameter], kinds: Mapping[str, set[Any]]
) -> dict[str, Parameter]:
    """Parameters after those that they depend on, else as given."""
    done: dict[str, Parameter] = {}
    left = dict(chosen)
    while left:
        ready = [path for path, p in left.items() if not any(other in left for other in p.when)]
        if not ready:
            raise UserError(f"tune.space: {' and '.join(left)} depend on each other")
        for path in ready:
            for other in left[path].when:
                _check_path(other, kinds)
            done[path] = left.pop(path)
    return done


def _contains(distribution: Distribution, value: Value) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if not isinstance(value, int | float):
        return False
    return bool(distribution.low <= value <= distribution.high)


def _reason(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}"
