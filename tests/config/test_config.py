"""Test that every config file is valid, and that every typo is reported with the nearest name."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from composing import compose_config, plain
from omegaconf import OmegaConf
from quick import quick

from kinopoisk_ft.config.groups import get_conf_dir, list_options
from kinopoisk_ft.config.validate import find_errors, prepare
from kinopoisk_ft.errors import UserError

OPTIONS = [
    (group, option) for group, options in list_options(get_conf_dir()).items() for option in options
]
STUDY = {
    "study_bert_full": (5e-5, 3, 16, 256),
    "study_bert_frozen": (5e-5, 3, 16, 256),
    "study_bert_lora": (3e-4, 3, 16, 256),
    "study_mamba": (5e-5, 1, 8, 512),
}


def test_options_are_found() -> None:
    groups = list_options(get_conf_dir())
    assert set(groups["model"]) >= {
        "bert", "bert_tiny", "mamba", "bert_scratch", "mamba_scratch", "encoder", "tfidf",
    }  # fmt: skip
    assert set(groups["adapter"]) == {
        "none", "freeze", "head", "bitfit", "lora", "dora", "rslora", "ia3",
    }  # fmt: skip
    assert set(groups["data"]) == {"kinopoisk", "demo", "file", "hub"}
    assert len(OPTIONS) == len(
        [f for f in get_conf_dir().rglob("[!_]*.yaml") if f.parent != get_conf_dir()]
    )


# Launchers come with packages that not everybody needs.
EXTRAS = {
    ("hydra/launcher", "ray"): ["ray"],
    ("hydra/launcher", "slurm"): ["submitit"],
}


@pytest.mark.parametrize(
    ("group", "option"), quick(OPTIONS[::3] + OPTIONS[1::3] + OPTIONS[2::3], 15)
)
def test_each_option_composes_and_binds(group: str, option: str) -> None:
    if missing := [extra for extra in EXTRAS.get((group, option), []) if not find_spec(extra)]:
        pytest.skip(f"{missing[0]} is not installed: make setup-all")
    overrides = [f"{group}={option}"]
    if (group, option) == ("model", "encoder"):
        overrides.append("model.name=somewhere")
    if (group, option) == ("task", "pretrain"):
        overrides.append("task.save_to=somewhere")
    cfg = compose_config(overrides)
    assert "experiment" not in cfg
    assert find_errors(plain(cfg)) == []


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_each_option_has_a_description(group: str, option: str) -> None:
    text = list_options(get_conf_dir())[group][option]
    assert 10 < len(text) <= 110


@pytest.mark.parametrize("file", sorted((get_conf_dir() / "experiment").glob("*.yaml")), ids=str)
def test_experiments_are_global(file: Path) -> None:
    assert file.read_text(encoding="utf-8").startswith("# @package _global_\n")


def test_kinopoisk_reviews_are_read_from_the_end() -> None:
    assert plain(compose_config(["data=kinopoisk"]))["data"]["truncation"] == "tail"


@pytest.mark.parametrize("name", STUDY)
def test_study_experiments_have_the_settings_of_the_study(name: str) -> None:
    cfg = plain(compose_config([f"experiment={name}"]))
    lr, epochs, batch_size, max_length = STUDY[name]
    trainer = cfg["trainer"]
    assert (trainer["lr"], trainer["epochs"], trainer["batch_size"]) == (lr, epochs, batch_size)
    assert (cfg["data"]["max_length"], cfg["data"]["truncation"]) == (max_length, "head")
    assert (trainer["warmup_steps"], trainer["weight_decay"], cfg["seed"]) == (100, 0.01, 42)
    assert trainer["head_lr"] is None
    if name == "study_mamba":
        assert cfg["model"]["name"] == "state-spaces/mamba-130m-hf"
        assert cfg["model"]["tokenizer"] == cfg["model"]["name"]
    else:
        assert cfg["model"]["name"] == "DeepPavlov/rubert-base-cased"
    if name == "study_bert_frozen":
        assert cfg["adapter"]["layers"] == 10
    if name == "study_bert_lora":
        lora = cfg["adapter"]["config"]
        assert (lora["r"], lora["lora_alpha"], lora["lora_dropout"]) == (8, 32, 0.1)
        assert (lora["target_modules"], lora["bias"]) == (["query", "value"], "none")


@pytest.mark.parametrize("name", [*STUDY, "study_tfidf"])
def test_study_keeps_its_rows(name: str) -> None:
    data = plain(compose_config([f"experiment={name}"]))["data"]
    assert (data["near_duplicates"], data["strip_scores"], data["split"]) == (
        "keep",
        False,
        "random",
    )
    assert (data["test_size"], data["val_size"], data["split_seed"]) == (0.2, 0.2, 42)
    assert data["limit"] is data["folds"] is data["max_characters"] is None
    assert data["truncation"] == "head"


def test_only_the_study_keeps_near_duplicates() -> None:
    chosen = {
        group: plain(compose_config([f"data={group}"]))["data"]["near_duplicates"]
        for group in ("kinopoisk", "file", "hub", "demo")
    }
    assert chosen == {"kinopoisk": "keep", "file": "drop", "hub": "drop", "demo": "drop"}


def test_study_sweep_runs_four_approaches_and_the_baseline() -> None:
    text = (get_conf_dir() / "sweep" / "study.yaml").read_text()
    assert all(name in text for name in [*STUDY, "study_tfidf"])


def broken(change: str, value: object) -> list[str]:
    cfg = plain(compose_config(["model=bert_scratch", "adapter=lora"]))
    node = cfg
    *path, last = change.split(".")
    for key in path:
        node = node[key]
    node[last] = value
    return find_errors(cfg)


@pytest.mark.parametrize(
    ("change", "value", "told"),
    [
        ("trainer.max_epochs", 3, "unknown option 'trainer.max_epochs': did you mean 'epochs'?"),
        ("modle", {}, "unknown key 'modle': did you mean 'model'?"),
        ("adapter.config.lora_alfa", 3, "did you mean 'lora_alpha'?"),
        ("trainer.optimizer.beta", 3, "did you mean 'betas'?"),
        ("trainer.precision", "fp8", "should be 'auto', 'fp32', 'bf16' or 'fp16'"),
        ("trainer.epochs", "three", "should be a valid integer"),
        ("model._target_", "kinopoisk_ft.models.nothing", "cannot import"),
        ("trainer", {}, "the chosen option of the group 'trainer' has no `_target_`"),
        ("data.path", 5, "data.path"),
    ],
)
def test_mistakes_are_reported(change: str, value: object, told: str) -> None:
    if change == "data.path":
        assert any(told in error for error in broken(change, value))
    else:
        errors = broken(change, value)
        assert len(errors) == 1
        assert told in errors[0]


def test_all_mistakes_are_reported_at_once() -> None:
    cfg = plain(compose_config(["model=bert_scratch"]))
    cfg["trainer"]["max_epochs"] = 1
    cfg["model"]["hiden_size"] = 1
    cfg["seeds"] = 1
    assert len(find_errors(cfg)) == 3


@pytest.mark.parametrize("value", [-1, 2**32, -(10**30), 1.5, "one", True])
@pytest.mark.parametrize("key", ["seed", "data.split_seed", "data.seed", "trainer.seed"])
def test_a_seed_out_of_range_is_reported(key: str, value: object) -> None:
    """NumPy and scikit-learn accept 32 bits; torch would accept more."""
    cfg = plain(compose_config(["model=bert_scratch", "data=demo"]))
    OmegaConf.update(holder := OmegaConf.create(cfg), key, value)
    errors = find_errors(plain(holder))
    assert errors
    assert all(key in error and "integer" in error for error in errors)


def test_the_smallest_and_the_largest_seed_are_valid() -> None:
    for seed in (0, 2**32 - 1):
        np.random.RandomState(seed)
        overrides = ["model=bert_scratch", "data=demo", f"seed={seed}", f"data.split_seed={seed}"]
        assert find_errors(plain(compose_config([*overrides, f"data.seed={seed}"]))) == []


def test_another_seed_of_the_trainer_is_refused() -> None:
    """Reports would take runs that differ only in this seed for repetitions of one run."""
    with pytest.raises(UserError, match=r"trainer\.seed=1 differs from seed=42: set only seed"):
        prepare(compose_config(["model=bert_scratch", "trainer.seed=1"]))
    prepare(compose_config(["model=bert_scratch", "trainer.seed=1", "seed=1"]))


def test_seeds_are_reported_with_the_other_mistakes() -> None:
    cfg = compose_config(["model=bert_scratch", "seed=-1", "data.split_seed=-2", "data.classes=x"])
    with pytest.raises(UserError) as caught:
        prepare(cfg)
    found = str(caught.value)
    assert [found.count(key) for key in ("seed=-1", "split_seed=-2", "data.classes")] == [1, 1, 1]


def test_a_missing_value_is_reported_with_its_key() -> None:
    with pytest.raises(UserError, match=r"model\.name"):
        prepare(compose_config(["model=encoder"]))


def test_a_null_seed_is_replaced_by_a_random_one() -> None:
    cfg = compose_config(["model=bert_scratch", "seed=null"])
    prepared = prepare(cfg)
    assert isinstance(prepared.cfg.seed, int)
    assert prepared.cfg.trainer.seed == prepared.cfg.seed


def test_seed_zero_is_a_seed() -> None:
    assert prepare(compose_config(["model=bert_scratch", "seed=0"])).cfg.seed == 0


def test_frozen_config_cannot_be_changed() -> None:
    prepared = prepare(compose_config(["model=bert_scratch"]))
    with pytest.raises(Exception, match="read-only"):
        prepared.cfg.seed = 1
