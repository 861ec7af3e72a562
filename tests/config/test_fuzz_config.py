"""Test that any value of any option gives a valid config or one error message."""

from __future__ import annotations

from typing import Any

import pytest
from composing import CHOICES, VALUES, compose_config, plain
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException
from quick import quick

from kinopoisk_ft.cli import main
from kinopoisk_ft.config.help import is_composition_error
from kinopoisk_ft.config.prepared import Prepared
from kinopoisk_ft.config.validate import SETTINGS, prepare
from kinopoisk_ft.errors import UserError

QUICK = settings(max_examples=12, deadline=None, derandomize=True, database=None)
DEEP = settings(
    max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def keys() -> dict[str, tuple[str, ...]]:
    """Return the options of groups that are cheap to instantiate, each with its choice."""
    found = dict.fromkeys(SETTINGS, CHOICES[0])
    for choice in CHOICES:
        cfg = plain(compose_config(choice))
        for group in ("model", "adapter", "data", "trainer"):
            for key in leaves(cfg[group], group):
                found.setdefault(key, choice)
    return dict(sorted(found.items()))


def leaves(node: Any, path: str) -> list[str]:
    if not isinstance(node, dict):
        return [path]
    return [path, *(leaf for key, value in node.items() for leaf in leaves(value, f"{path}.{key}"))]


KEYS = keys()
overrides = st.lists(
    st.builds(
        "{}={}".format, st.sampled_from([*KEYS]), st.sampled_from(VALUES) | st.text(max_size=5)
    ),
    min_size=1,
    max_size=3,
)


def built(choice: tuple[str, ...], changes: list[str]) -> Prepared | None:
    """Compose, check and build the parts as a run does; return None after one error message.

    Libraries that receive an option unchanged (`peft`, `torch`) may refuse it with another message,
    which the command line also shows in one line.
    """
    try:
        cfg = compose_config([*choice, *changes])
    except (HydraException, OmegaConfBaseException, ValueError):
        # The command line's grammar refuses it; `cli` explains the error.
        return None
    except TypeError as error:
        if is_composition_error(error):
            return None
        raise
    try:
        prepared = prepare(cfg)
        for group in ("model", "adapter", "data", "trainer"):
            instantiate(prepared.cfg[group])
    except UserError as error:
        told = str(error)
    except InstantiationException as error:
        told = str(error)
        cause = error.__cause__
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        mine = isinstance(cause, UserError)
        theirs = any(f"'{name}." in told for name in ("peft", "torch"))
        if not (mine or theirs):
            raise
    else:
        return prepared
    if not told.strip():
        raise AssertionError("a message without words")
    return None


def check(choice: tuple[str, ...], changes: list[str]) -> None:
    built(choice, changes)


def test_the_fuzzed_configs_can_be_built() -> None:
    assert len(KEYS) > 60
    for choice in CHOICES:
        assert built(choice, []) is not None


def test_any_override_quick() -> None:
    QUICK(given(st.sampled_from(CHOICES), overrides)(check))()


@pytest.mark.slow
def test_any_override_deep() -> None:
    DEEP(given(st.sampled_from(CHOICES), overrides)(check))()


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_every_value_of_every_option(key: str) -> None:
    for value in VALUES:
        built(KEYS[key], [f"{key}={value}"])


def test_a_choice_that_is_not_a_name_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapter=[1]", "--cfg", "job"]) == 2
    assert "Hydra cannot compose adapter=[1]" in capsys.readouterr().err


REFUSED = [
    "trainer.lr=nan", "trainer.lr=-1.0", "trainer.lr=inf", "trainer.head_lr=-1.0",
    "trainer.clip_norm=-1.0", "trainer.clip_norm=nan", "trainer.weight_decay=nan",
    "trainer.warmup_steps=-1", "trainer.warmup_share=nan", "trainer.epochs=-1",
    "trainer.batch_size=0", "trainer.accumulate=-3", "trainer.checkpoint_every=-1",
    "trainer.epochs=''", "trainer.budget=''", "data.test_size=nan", "data.limit=-1",
    "data.max_length=0", "data.truncation=''", "model.hidden_size=0", "model.num_heads=0",
    "model.num_heads=3", "model.num_layers=-1", "model.dropout=nan", "model.dropout=1.0",
    "model.vocab_size=0", "data.reviews=0", "data.reviews=-5", "adapter.lr=nan",
    "data.folds=${trainer}", "data.truncation=${trainer}",
]  # fmt: skip


@pytest.mark.parametrize("change", quick(REFUSED, 16))
def test_values_out_of_range_are_refused(change: str) -> None:
    assert built(CHOICES[0], [change]) is None
