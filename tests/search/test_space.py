"""Test the search space: its keys, additions of the command line, and the first points."""

from __future__ import annotations

import math

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from quick import quick

from kinopoisk_ft.config.groups import get_conf_dir
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.search.space import (
    build_space,
    parse_overrides,
    read_current_values,
    sample_latin_hypercube,
)


def read(*args: str) -> tuple[dict[str, BaseDistribution], DictConfig]:
    """Return the space of a search with these arguments, and the config it starts from."""
    with initialize_config_dir(str(get_conf_dir()), version_base="1.3", job_name="test"):
        whole = compose("train", ["sweep=lr_search"], return_hydra_config=True)
        params = whole.hydra.sweeper.params
        search = parse_overrides(OverridesParser.create(), params, args)
        base = compose("train", search.fixed, return_hydra_config=True)
    return build_space(search, base), base


def test_the_space_is_of_the_keys_that_the_adapter_has(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    found, base = read("model=bert_scratch", "adapter=lora")
    assert found["adapter.lr"] == FloatDistribution(2e-4, 2e-2, log=True)
    assert set(found) == {
        "adapter.lr", "adapter.config.r", "adapter.config.lora_dropout", "model.dropout",
    }  # fmt: skip
    assert not caplog.messages
    assert read_current_values(found, base) == {
        "adapter.lr": 2e-3, "adapter.config.r": "8", "adapter.config.lora_dropout": "0.1",
        "model.dropout": "0.1",
    }  # fmt: skip
    # The current weight decay, 0.01, is outside of this range.
    outside = read("model=bert_scratch", "trainer.weight_decay=interval(0.1,0.5)")
    assert "trainer.weight_decay" in outside[0]
    assert "trainer.weight_decay" not in read_current_values(*outside)
    caplog.clear()
    found, _ = read("model=bert_scratch", "adapter=none", "model.lr=1e-4", "model.dropout=0.3")
    assert found == {"adapter.lr": FloatDistribution(1e-5, 1e-3, log=True)}
    # trainer.lr is by default ${adapter.lr}, so a range of it replaces that of adapter.lr.
    found, _ = read("model=bert_scratch", "trainer.lr=interval(1e-4,1e-3)")
    assert {"trainer.lr"} == {key for key in found if key.endswith(".lr")}
    for key in ("adapter.config.r", "adapter.config.lora_dropout", "model.dropout", "adapter.lr"):
        assert any(line.startswith(f"not searched: {key},") for line in caplog.messages)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("trainer.weight_decay=interval(0,0.5)", FloatDistribution(0, 0.5)),
        ("trainer.batch_size=range(8,40,8)", IntDistribution(8, 32, step=8)),
        ("trainer.epochs=tag(log,int(interval(1,8)))",
         IntDistribution(1, 8, log=True)),
        ("trainer/loss=focal,cross_entropy",
         CategoricalDistribution(["focal", "cross_entropy"])),
        ("trainer/schedule=linear,cosine",
         CategoricalDistribution(["linear", "cosine"])),
    ],
)  # fmt: skip
def test_the_command_line_adds_to_the_space(argument: str, expected: BaseDistribution) -> None:
    found, _ = read("model=bert_scratch", argument)
    assert found[argument.split("=")[0]] == expected
    assert "adapter.lr" in found


def test_the_first_points_cover_each_interval_of_each_range() -> None:
    found: dict[str, BaseDistribution] = {
        "lr": FloatDistribution(1e-4, 1e-1, log=True),
        "decay": FloatDistribution(0, 1),
        "tenth": FloatDistribution(0, 0.5, step=0.1),
        "epochs": IntDistribution(1, 6),
        "steps": IntDistribution(1, 64, log=True),
        "rank": CategoricalDistribution(["2", "4", "8"]),
    }
    points = sample_latin_hypercube(found, 6, seed=0)
    assert sorted(int(math.log10(p["lr"] / 1e-4) * 2) for p in points) == list(range(6))
    assert sorted(int(p["decay"] * 6) for p in points) == list(range(6))
    assert sorted(round(p["tenth"] * 10) for p in points) == list(range(6))
    assert sorted(p["epochs"] for p in points) == list(range(1, 7))
    assert sorted(p["rank"] for p in points) == ["2", "2", "4", "4", "8", "8"]
    # The keys are independent: the points do not lie on a diagonal.
    decays = [p["decay"] for p in sorted(points, key=lambda p: p["lr"])]
    assert decays != sorted(decays)
    for key, dist in found.items():
        assert all(dist._contains(dist.to_internal_repr(p[key])) for p in points)
    assert (
        sample_latin_hypercube(found, 6, seed=0)
        == points
        != sample_latin_hypercube(found, 6, seed=1)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    quick(
        [
            (
                ["trainer.best_metric=loss", "trainer.class_weights=none,balanced"],
                "trials are compared by val_loss(?s:.*)set one value of trainer.class_weights",
            ),
            (["adapter.config.rr=choice(1,2)", "adapter=lora"], r"did you mean 'adapter.config.r'"),
            (
                ["adapter.lr=interval(0.1,1)", "trainer.lr=interval(0.1,1)"],
                "trainer.lr has a range, which replaces it(?s:.*)to do: set only the range of tr",
            ),
            (
                ["model.lr=interval(0.1,1)"],
                "adapter.lr has a range, which replaces it(?s:.*)to do: set only the range of ad",
            ),
            (["seed=1,2"], "seed cannot be a search parameter"),
            (["data.limit=10,20"], "data.limit cannot be a search parameter"),
            (["adapter=none,lora"], "adapter cannot be a search parameter"),
            (["trainer.best_metric=loss,accuracy"], "best_metric cannot be a search parameter"),
            (["trainer.weight_decay=interval(0.5,0.1)"], "is empty"),
            (["trainer.weight_decay=tag(log,interval(0,1))"], "lower bound above 0, not 0.0"),
            (["trainer.weight_decay=tag(lg,interval(0.1,1))"], "tags"),
            (["trainer.epochs=range(3,4)"], "two increasing values"),
            (
                ["trainer.max_steps=tag(relative,interval(1,2))"],
                "a current value above 0, not None(?s:.*)to do: remove the tag relative",
            ),
            (
                ["adapter.lr=interval(0.1,1)", "trainer.lr=0.1"],
                "trainer.lr does not refer to it(?s:.*)to do: remove the value",
            ),
            (["adapter.lr=0.1", "model.dropout=0"], "nothing to search"),
            (["trainer.best_metric=loss", "trainer/loss=focal,cross_entropy"], "redefines"),
            (
                ["trainer.best_metric=loss", "trainer/loss=focal", "trainer.loss.gamma=1,2"],
                "redefines",
            ),
        ],
        6,
    ),
)
def test_an_invalid_search_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read("model=bert_scratch", *arguments)
