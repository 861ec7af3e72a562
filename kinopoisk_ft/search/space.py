"""The space of a search: which keys vary and how, in Hydra's own words for it."""

from __future__ import annotations

import logging
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from kinopoisk_ft.config.prepared import flatten
from kinopoisk_ft.errors import UserError, suggest_name

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)

# What may vary: all else decides where results go, or which reviews and scores are compared.
SEARCHED = ("model.", "adapter.", "trainer.", "trainer/", "data.max_length", "data.truncation")
COMPARED = {"trainer.seed", "trainer.best_metric", "trainer.device"}
EXAMPLE = "'adapter.lr=tag(log,interval(1e-4,1e-2))'"
ABSENT = object()


@dataclass(frozen=True)
class Words:
    """What was asked of a search: overrides that hold for every trial, and those that vary.

    `declared` come from the file of the sweep, `asked` from the command line; a key that the
    command line gives is no longer declared.
    """

    fixed: list[str]
    declared: list[Override]
    asked: list[Override]


def read_words(parser: OverridesParser, params: DictConfig, arguments: Sequence[str]) -> Words:
    """Sort the overrides of the sweep's file and of the command line."""
    asked = parser.parse_overrides(list(arguments))
    given = {override.key_or_group for override in asked}
    lines = [f"{key!s}={value}" for key, value in params.items() if value is not None]
    declared = [o for o in parser.parse_overrides(lines) if o.key_or_group not in given]
    fixed = [str(o.input_line) for o in [*declared, *asked] if not o.is_sweep_override()]
    for key in sorted(given & {str(key) for key in params}):
        if not any(o.key_or_group == key and o.is_sweep_override() for o in asked):
            log.info("not searched: %s, which the command line fixes", key)
    return Words(
        fixed,
        [o for o in declared if o.is_sweep_override()],
        [o for o in asked if o.is_sweep_override()],
    )


def space(words: Words, base: DictConfig) -> dict[str, BaseDistribution]:
    """Return the distribution of each key that varies, in a fixed order.

    Args:
        base: the composed config of a trial without what varies, `hydra` included.

    Raises:
        UserError: a key of the command line that this config does not have or that is none to
            search over, a range that is none, or nothing left to vary. A key that only the sweep's
            file declares is left out with a line in the log.
    """
    found: dict[str, BaseDistribution] = {}
    for override in words.declared:
        why = _unfit(override, base)
        if why is None:
            found[override.key_or_group] = distribution(override, base)
        else:
            log.info("not searched: %s, %s", override.key_or_group, why)
    for override in words.asked:
        why = _unfit(override, base)
        if why is not None:
            known = [*flatten(OmegaConf.to_container(base)), *base.hydra.runtime.choices]
            raise UserError(
                f"{override.key_or_group} cannot be searched: {why}",
                where=str(override.input_line),
                fix=suggest_name(
                    override.key_or_group, [key for key in known if _may_vary(str(key))]
                ),
            )
        found[override.key_or_group] = distribution(override, base)
    if not found:
        raise UserError(
            "nothing is left to search over", where="sweep", fix=f"give a range: {EXAMPLE}"
        )
    return dict(sorted(found.items()))


def distribution(override: Override, base: DictConfig) -> BaseDistribution:
    """Return Optuna's distribution of an interval, a range or a choice."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    tags = _tags(override)
    if tags - ({"log", "relative"} if isinstance(value, IntervalSweep) else set()):
        raise _wrong(override, "the tags are log and relative, and of an interval alone")
    if isinstance(value, IntervalSweep):
        low, high = _ends(value, override, base)
        if not low < high:
            raise _wrong(override, f"from {low} to {high} is no range")
        if "log" in tags and low <= 0:
            raise _wrong(override, f"{low} has no logarithm")
        whole = isinstance(low, int) and isinstance(high, int)
        return (IntDistribution if whole else FloatDistribution)(low, high, log="log" in tags)
    if isinstance(value, RangeSweep):
        steps = list(value.range())
        if len(steps) < 2 or steps[0] > steps[-1]:
            raise _wrong(override, "the range does not rise")
        whole = all(isinstance(step, int) for step in steps)
        kind: Any = IntDistribution if whole else FloatDistribution
        return kind(steps[0], steps[-1], step=value.step)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def overrides(params: dict[str, Any]) -> list[str]:
    """Return a trial's parameters as overrides."""
    return [f"{key}={value}" for key, value in sorted(params.items())]


def ends(found: dict[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Return two points of the space: all lowest values or first choices, and all last ones."""
    dists: list[tuple[str, Any]] = list(found.items())
    low = {key: d.choices[0] if hasattr(d, "choices") else d.low for key, d in dists}
    high = {key: d.choices[-1] if hasattr(d, "choices") else d.high for key, d in dists}
    return [low, high]


def usual(found: dict[str, BaseDistribution], base: DictConfig) -> dict[str, Any]:
    """Return those values of the config as it is that lie in the space."""
    from optuna.distributions import CategoricalDistribution

    values: dict[str, Any] = {}
    for key, dist in found.items():
        now, known = _value(key, base), typing.cast(Any, dist)
        if isinstance(dist, CategoricalDistribution):
            parsed = OverridesParser.create().parse_overrides([f"x={c}" for c in dist.choices])
            same = [c for c, o in zip(dist.choices, parsed, strict=True) if o.value() == now]
            values |= {key: same[0]} if same else {}
        elif isinstance(now, int | float) and known.low <= now <= known.high:
            values[key] = now
    return values


def _value(key: str, base: DictConfig) -> Any:
    if "/" in key:
        return base.hydra.runtime.choices.get(key, ABSENT)
    return OmegaConf.select(base, key, default=ABSENT)


def _may_vary(key: str) -> bool:
    return key.startswith(SEARCHED) and key not in COMPARED


def _unfit(override: Override, base: DictConfig) -> str | None:
    """Return why a key cannot vary, None if it can."""
    key = override.key_or_group
    if not _may_vary(key):
        return "trials must differ in nothing but what is learned, and how"
    now = _value(key, base)
    if now is ABSENT:
        return "the chosen model, adapter and trainer have no such key"
    if key == "adapter.lr" and not OmegaConf.is_interpolation(base.trainer, "lr"):
        return "for trainer.lr has a value of its own here"
    if "relative" in _tags(override) and not (isinstance(now, int | float) and now > 0):
        return f"its value {now} has no multiples"
    return None


def _tags(override: Override) -> set[str]:
    """Return the words that `tag(...)` puts on a range."""
    tags: set[str] = getattr(override.value(), "tags", set())
    return tags


def _ends(value: IntervalSweep, override: Override, base: DictConfig) -> tuple[Any, Any]:
    low, high = value.start, value.end
    if low is None or high is None:
        raise _wrong(override, "an interval has two ends")
    if "relative" not in value.tags:
        return low, high
    now = float(_value(override.key_or_group, base))
    return low * now, high * now


def _wrong(override: Override, why: str) -> UserError:
    return UserError(why, where=str(override.input_line), fix=f"for example {EXAMPLE}")


def described(found: dict[str, BaseDistribution]) -> dict[str, str]:
    """Return the space as texts that are the same for the same space."""
    return {key: str(dist) for key, dist in found.items()}


def told(found: dict[str, BaseDistribution]) -> Iterable[str]:
    """Yield a line on each key, for the log."""
    from optuna.distributions import CategoricalDistribution

    for key, dist in found.items():
        if isinstance(dist, CategoricalDistribution):
            yield f"{key}: one of {', '.join(map(str, dist.choices))}"
        else:
            known = typing.cast(Any, dist)
            yield f"{key}: {known.low:g} to {known.high:g}" + " by logarithm" * known.log


if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def spread(found: dict[str, BaseDistribution], count: int, seed: int) -> list[dict[str, Any]]:
    """Return points of a Latin hypercube (McKay, Beckman and Conover, 1979).

    Each range is cut into `count` equal parts, and each part has one point.
    """
    rng = np.random.default_rng(seed)
    shares = {key: (rng.permutation(count) + rng.random(count)) / count for key in found}
    return [{key: _at(dist, float(shares[key][i])) for key, dist in found.items()}
            for i in range(count)]  # fmt: skip


def _at(dist: Any, share: float) -> Any:
    """Return the value that lies at a share in [0, 1) of a distribution."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(dist, CategoricalDistribution):
        return dist.choices[int(share * len(dist.choices))]
    whole = isinstance(dist, IntDistribution)
    if dist.log:
        value = dist.low * (dist.high / dist.low) ** share
        return round(value) if whole else value
    if dist.step is None:
        return dist.low + (dist.high - dist.low) * share
    value = dist.low + dist.step * int(share * (round((dist.high - dist.low) / dist.step) + 1))
    return value if whole else min(value, dist.high)
