"""Build the search space of Optuna from ranges in Hydra's sweep syntax."""

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

# Prefixes of keys that may vary, except `COMPARED`. Other keys decide where results are written, or
# which reviews and scores are compared.
SEARCHED = (
    "model.", "adapter.", "trainer.", "trainer/", "data.max_length", "data.truncation",
    "data.window_stride", "data.max_windows", "data.text_prefix",
)  # fmt: skip
COMPARED = {"trainer.seed", "trainer.best_metric", "trainer.device"}
# Prefixes of keys that define val_loss, so trials that differ in them have no comparable val_loss.
LOSS_KEYS = ("trainer/loss", "trainer.loss", "trainer.class_weights")
# Each of these keys may refer to the one before it, as with adapter=none. Any other value, as with
# adapter=lora, replaces that one.
LR_KEYS = ("model.lr", "adapter.lr", "trainer.lr")
EXAMPLE = "'adapter.lr=tag(log,interval(1e-4,1e-2))'"
# Stands for a missing key, because None is a valid value of a key.
ABSENT = object()


@dataclass(frozen=True)
class SearchOverrides:
    """The overrides of a search.

    Args:
        fixed: overrides that set a key to the same value in all trials.
        declared: ranges in `hydra.sweeper.params`, except for keys set on the command line.
        asked: ranges on the command line.
    """

    fixed: list[str]
    declared: list[Override]
    asked: list[Override]


def parse_overrides(
    parser: OverridesParser, params: DictConfig, arguments: Sequence[str]
) -> SearchOverrides:
    """Parse the overrides of a search, and separate fixed values from ranges."""
    asked = parser.parse_overrides(list(arguments))
    given = {override.key_or_group for override in asked}
    lines = [f"{key!s}={value}" for key, value in params.items() if value is not None]
    declared = [o for o in parser.parse_overrides(lines) if o.key_or_group not in given]
    fixed = [str(o.input_line) for o in [*declared, *asked] if not o.is_sweep_override()]
    for key in sorted(given & {str(key) for key in params}):
        if not any(o.key_or_group == key and o.is_sweep_override() for o in asked):
            log.info("not searched: %s, because the command line sets it", key)
    return SearchOverrides(
        fixed,
        [o for o in declared if o.is_sweep_override()],
        [o for o in asked if o.is_sweep_override()],
    )


def build_space(search: SearchOverrides, base: DictConfig) -> dict[str, BaseDistribution]:
    """Return the distribution of each searched key, sorted by key.

    If a key cannot be searched with this config, a range on the command line (`search.asked`) is an
    error, and a range in `search.declared` is skipped.

    Args:
        base: a config composed with the overrides in `search.fixed`, including the `hydra` node.

    Raises:
        UserError: a key in `search.asked` cannot be searched, a range is not valid, or there is no
            range.
    """
    found: dict[str, BaseDistribution] = {}
    searched = {override.key_or_group for override in [*search.declared, *search.asked]}
    for override in search.declared:
        refusal = _explain_unsearchable(override, base, searched)
        if refusal is None:
            found[override.key_or_group] = build_distribution(override, base)
        else:
            log.info("not searched: %s, because %s", override.key_or_group, refusal[0])
    for override in search.asked:
        refusal = _explain_unsearchable(override, base, searched)
        if refusal is not None:
            why, fix = refusal
            raise UserError(
                f"{override.key_or_group} cannot be a search parameter: {why}",
                where=str(override.input_line),
                fix=fix,
            )
        found[override.key_or_group] = build_distribution(override, base)
    if not found:
        fix = f"set a range, for example {EXAMPLE}"
        raise UserError("there is nothing to search: no key has a range", where="sweep", fix=fix)
    return dict(sorted(found.items()))


def build_distribution(override: Override, base: DictConfig) -> BaseDistribution:
    """Convert a Hydra interval, range or choice to an Optuna distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    tags = _get_tags(override)
    if tags - ({"log", "relative"} if isinstance(value, IntervalSweep) else set()):
        raise _range_error(
            override, "only the tags log and relative are supported, and only for an interval"
        )
    if isinstance(value, IntervalSweep):
        low, high = _get_bounds(value, override, base)
        if not low < high:
            raise _range_error(override, f"the interval from {low} to {high} is empty")
        if "log" in tags and low <= 0:
            raise _range_error(override, f"the tag log needs a lower bound above 0, not {low}")
        # Hydra's cast `int(interval(1, 8))` makes both bounds integers.
        whole = isinstance(low, int) and isinstance(high, int)
        return (IntDistribution if whole else FloatDistribution)(low, high, log="log" in tags)
    if isinstance(value, RangeSweep):
        steps = list(value.range())
        if len(steps) < 2 or steps[0] > steps[-1]:
            raise _range_error(override, "the range needs at least two increasing values")
        whole = all(isinstance(step, int) for step in steps)
        kind: Any = IntDistribution if whole else FloatDistribution
        # The last value is the upper bound: Hydra's range excludes its end, and Optuna includes it.
        return kind(steps[0], steps[-1], step=value.step)
    # The choices stay text, because Optuna's storages may not accept lists and dicts.
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def format_overrides(params: dict[str, Any]) -> list[str]:
    """Return the parameters of a trial as Hydra overrides."""
    return [f"{key}={value}" for key, value in sorted(params.items())]


def list_corners(space: dict[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Return the parameters of two trials at opposite corners of the search space.

    The first trial has the lowest value or the first choice of each key. The second trial has the
    highest value or the last choice.
    """
    dists: list[tuple[str, Any]] = list(space.items())
    low = {key: d.choices[0] if hasattr(d, "choices") else d.low for key, d in dists}
    high = {key: d.choices[-1] if hasattr(d, "choices") else d.high for key, d in dists}
    return [low, high]


def read_current_values(space: dict[str, BaseDistribution], base: DictConfig) -> dict[str, Any]:
    """Return {searched key: value in the config `base`}, for values within the search space."""
    from optuna.distributions import CategoricalDistribution

    values: dict[str, Any] = {}
    for key, dist in space.items():
        now, known = _get_value(key, base), typing.cast(Any, dist)
        if isinstance(dist, CategoricalDistribution):
            # The choices are text, so Hydra parses them before the comparison with the config.
            parsed = OverridesParser.create().parse_overrides([f"x={c}" for c in dist.choices])
            same = [c for c, o in zip(dist.choices, parsed, strict=True) if o.value() == now]
            values |= {key: same[0]} if same else {}
        elif isinstance(now, int | float) and known.low <= now <= known.high:
            values[key] = now
    return values


def _get_value(key: str, base: DictConfig) -> Any:
    # A key with a slash is a config group, such as `trainer/loss`.
    if "/" in key:
        return base.hydra.runtime.choices.get(key, ABSENT)
    return OmegaConf.select(base, key, default=ABSENT)


def _is_searchable(key: str) -> bool:
    return key.startswith(SEARCHED) and key not in COMPARED


def _explain_unsearchable(
    override: Override, base: DictConfig, searched: set[str]
) -> tuple[str, str] | None:
    """Return why the key cannot be searched, and what the user can change."""
    key = override.key_or_group
    known = [*flatten(OmegaConf.to_container(base)), *map(str, base.hydra.runtime.choices)]
    other_key = suggest_name(key, filter(_is_searchable, known))
    if not _is_searchable(key):
        why = "it decides where results are written, or which reviews and scores are compared"
        return why, other_key
    now = _get_value(key, base)
    if now is ABSENT:
        return "the selected model, adapter and trainer have no such key", other_key
    if base.trainer.best_metric == "loss" and key.startswith(LOSS_KEYS):
        why = "trials are compared by val_loss (trainer.best_metric=loss), which this key redefines"
        return why, f"set one value of {key}, or another trainer.best_metric"
    for later in LR_KEYS[LR_KEYS.index(key) + 1 :] if key in LR_KEYS else ():
        if later in searched:
            return f"{later} has a range, which replaces it", f"set only the range of {later}"
        if not OmegaConf.is_interpolation(base[later.partition(".")[0]], "lr"):
            fix = f"set the range for {later}"
            return f"{later} does not refer to it in this config", fix
    if "relative" in _get_tags(override) and not (isinstance(now, int | float) and now > 0):
        why = f"the tag relative needs a current value above 0, not {now}"
        return why, "remove the tag relative, and write the bounds themselves"
    return None


def _get_tags(override: Override) -> set[str]:
    tags: set[str] = getattr(override.value(), "tags", set())
    return tags


def _get_bounds(value: IntervalSweep, override: Override, base: DictConfig) -> tuple[Any, Any]:
    low, high = value.start, value.end
    if low is None or high is None:
        raise _range_error(override, "an interval needs two bounds")
    if "relative" not in value.tags:
        return low, high
    now = float(_get_value(override.key_or_group, base))
    return low * now, high * now


def _range_error(override: Override, why: str) -> UserError:
    return UserError(why, where=str(override.input_line), fix=f"write for example {EXAMPLE}")


def format_space(space: dict[str, BaseDistribution]) -> Iterable[str]:
    """Yield a log line for each searched key."""
    from optuna.distributions import CategoricalDistribution

    for key, dist in space.items():
        if isinstance(dist, CategoricalDistribution):
            yield f"{key}: one of {', '.join(map(str, dist.choices))}"
        else:
            known = typing.cast(Any, dist)
            yield f"{key}: {known.low:g} to {known.high:g}" + " (log scale)" * known.log


def sample_latin_hypercube(
    space: dict[str, BaseDistribution], count: int, seed: int
) -> list[dict[str, Any]]:
    """Return `count` points of a Latin hypercube (McKay, Beckman and Conover, 1979).

    The range of each key is divided into `count` equal intervals, and each interval contains the
    value of exactly one point.
    """
    rng = np.random.default_rng(seed)
    # Shape (count,) for each key: one random point in each interval, in random order.
    fractions = {key: (rng.permutation(count) + rng.random(count)) / count for key in space}
    return [
        {key: _value_at(dist, float(fractions[key][i])) for key, dist in space.items()}
        for i in range(count)
    ]


def _value_at(dist: Any, fraction: float) -> Any:
    """Map a fraction in [0, 1) to a value of the distribution."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(dist, CategoricalDistribution):
        return dist.choices[int(fraction * len(dist.choices))]
    whole = isinstance(dist, IntDistribution)
    if dist.log:
        # Equal steps of `fraction` multiply the value by equal factors.
        value = dist.low * (dist.high / dist.low) ** fraction
        return round(value) if whole else value
    if dist.step is None:
        return dist.low + (dist.high - dist.low) * fraction
    # `round` corrects the division in floating point: 0.3 / 0.1 is 2.9999999999999996.
    value = dist.low + dist.step * int(fraction * (round((dist.high - dist.low) / dist.step) + 1))
    # Rounding must not give a value above the upper bound.
    return value if whole else min(value, dist.high)
