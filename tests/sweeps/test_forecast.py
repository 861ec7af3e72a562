"""Test the forecast of a sweep: jobs, finished jobs, and the expected time."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import compose_config
from hydra.utils import instantiate
from sweeping import DATA, SMALL, write_reviews
from sweeping import _here as _here
from sweeping import place as place

from kinopoisk_ft import cli
from kinopoisk_ft.adapters.plain import Freeze, Full, Head
from kinopoisk_ft.commands import report
from kinopoisk_ft.data.preprocessing import Preprocessing
from kinopoisk_ft.sweeps import forecast
from kinopoisk_ft.sweeps.forecast import Expected, count_flops, count_tokens, format_forecast
from kinopoisk_ft.tracking.store import absolute_uri, open_experiment

# The fixture `_here` replaces this function, because it takes seconds.
SUMMARIZE = report.summarize_sweep


def run(*args: str) -> int:
    before = sys.argv
    try:
        return cli.main([*DATA, *args])
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before


class Tokenizer:
    """A tokenizer with what a recipe without pretrained weights needs."""

    pad_token_id = bos_token_id = eos_token_id = 0

    def __len__(self) -> int:
        return 100


def read_rows(text: str) -> dict[str, tuple[int, int]]:
    """Return {approach: (jobs, finished)} of a printed forecast."""
    found = re.findall(r"^(\w+)\s+(\d+)\s+(\d+)\s+\S+ (?:s|min|h)$", text, re.MULTILINE)
    return {name: (int(jobs), int(finished)) for name, jobs, finished in found}


def test_a_dry_run_lists_the_jobs_and_trains_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "summarize_sweep", SUMMARIZE)
    grid = ["-m", "seed=0,1", "tracking.log_model=false"]
    assert run(*grid, "model=tfidf", "output_dir=first") == 0
    shown = capsys.readouterr().out
    line = r"^1/2 tfidf, seed 0: test f1_weighted [01]\.\d{3} in \d+ s"
    assert re.search(line, shown, re.MULTILINE)
    # The sweep ends with a summary of its approaches.
    assert re.search(r"^TF-IDF +[01]\.\d{3} \[", shown, re.MULTILINE)
    assert "kinopoisk-ft report --parent " in shown
    assert run(*grid, "model=tfidf,bert_scratch", "output_dir=dry", "dry_run=true") == 0
    printed = capsys.readouterr().out
    assert read_rows(printed) == {"tfidf": (2, 2), "bert_scratch": (2, 0), "all": (4, 2)}
    assert not (place / "dry").exists()
    assert run("model=tfidf", "output_dir=dry", "dry_run=true", "rerun=true") == 0
    assert read_rows(capsys.readouterr().out) == {"tfidf": (1, 0)}
    # Only a sweep skips finished runs.
    assert run("model=tfidf", "output_dir=dry", "dry_run=true", "seed=0") == 0
    assert read_rows(capsys.readouterr().out) == {"tfidf": (1, 0)}
    assert not (place / "dry").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_reviews(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run("-m", "model=tfidf", "output_dir=dry", "dry_run=true") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.jsonl"]
    client, _ = open_experiment(absolute_uri(None), "another", None)
    assert run("-m", "model=tfidf", "output_dir=dry", "dry_run=true") == 0
    assert client.get_experiment_by_name("kinopoisk_ft") is None


def test_the_commands_of_a_summary_find_a_store_with_any_name(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'my films'}/mlflow.db"
    for line in SUMMARIZE(uri, "1a2b").splitlines()[-2:]:
        assert shlex.split(line)[-2:] == ["--uri", uri]


def test_a_dry_run_reports_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-m", "model=encoder", "model.name=./nowhere", "dry_run=true") == 1
    assert "the folder './nowhere' does not exist" in capsys.readouterr().err
    assert run("sweep=lr_search", "dry_run=true") == 1
    assert "dry_run cannot list them" in capsys.readouterr().err
    # The number of layers is in the config of the checkpoint.
    assert run("-m", *SMALL, "seed=3", "adapter=none,freeze", "dry_run=true") == 1
    assert "cannot freeze 10 layers: the model has 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("adapter", "options", "expected"),
    [
        # Two epochs of 100 tokens; two evaluations of 10 tokens; a test of 20 tokens.
        (Full(lr=1.0), [], 12 * (6 * 200 + 2 * 40)),
        (Freeze(layers=3, lr=1.0), [], 9 * 2 * 240 + 3 * (6 * 200 + 2 * 40)),
        (Full(lr=1.0), ["trainer.gradient_checkpointing=true"], 12 * (8 * 200 + 2 * 40)),
        (Head(lr=1.0), [], 12 * 2 * 240),
        (Head(lr=1.0), ["trainer.prefix_cache=fp16"], 12 * 2 * 130),
        (Full(lr=1.0), ["trainer.min_steps=40", "trainer.eval_every=10"],
         12 * (6 * 400 + 2 * 60)),
        (Full(lr=1.0), ["trainer.budget=tokens:300"], 12 * (6 * 300 + 2 * 50)),
    ],
)  # fmt: skip
def test_flops_of_a_training(adapter: Any, options: list[str], expected: float) -> None:
    cfg = compose_config(["trainer.epochs=2", "trainer.batch_size=1", *options])
    trainer = instantiate(cfg.trainer)
    tokens = {"train": 100.0, "val": 10.0, "test": 20.0}
    assert count_flops((4, 12), adapter, trainer, 10, tokens) == pytest.approx(expected)


def test_tokens_of_a_text() -> None:
    characters = np.array([0, 35, 3500])
    assert count_tokens(characters, Preprocessing(256)) == 2 + 12 + 256
    assert count_tokens(characters, Preprocessing(256, max_characters=350)) == 2 + 12 + 102
    # 1,000 tokens: windows of 98 tokens that start at most 73 tokens apart, 100 tokens each.
    windows = Preprocessing(100, "windows", window_stride=73)
    assert count_tokens(characters, windows) == 2 + 12 + 14 * 100
    limited = Preprocessing(100, "windows", window_stride=73, max_windows=3)
    assert count_tokens(characters, limited) == 2 + 12 + 3 * 100
    # A tokenizer without special tokens allows a stride of max_length.
    adjacent = Preprocessing(100, "windows", window_stride=100)
    assert count_tokens(characters, adjacent) == 2 + 12 + 11 * 100


@pytest.mark.parametrize("model", ["bert_scratch", "mamba_scratch", "mamba2_scratch"])
def test_sizes_are_near_those_of_the_built_layers(model: str) -> None:
    recipe = instantiate(compose_config([f"model={model}"]).model)
    blocks, weights = recipe.measure_layers()
    network = recipe.build(["a", "b"], Tokenizer())
    layers = network.module.get_submodule(network.layers)
    built = sum(parameter.numel() for parameter in layers.parameters())
    assert blocks == len(layers)
    # The scan of Mamba counts as weights, although it has none.
    assert built * 0.95 < weights < built * 1.5


def test_sizes_of_a_checkpoint(place: Path) -> None:
    from transformers import BertConfig, BertModel

    small = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    BertModel(small).save_pretrained(place / "checkpoint")
    cfg = compose_config(["model=encoder", f"model.name={place / 'checkpoint'}"])
    blocks, weights = instantiate(cfg.model).measure_layers()
    model = BertModel(small)
    others = sum(p.numel() for name, p in model.named_parameters() if "_embeddings" not in name)
    assert (blocks, weights) == (3, others)


def test_the_rate_is_that_of_a_matrix_product() -> None:
    assert 1e8 < forecast.measure_rate(torch.device("cpu"), "fp32") < 1e15


def test_unknown_sizes_are_said() -> None:
    text = format_forecast([
        Expected("own", True, 0.0), Expected("own", False, None), Expected("tfidf", False, 7200.0),
    ])  # fmt: skip
    assert re.search(r"^own +2 +1 +unknown$", text, re.MULTILINE)
    assert re.search(r"^tfidf +1 +0 +2\.0 h$", text, re.MULTILINE)
    assert re.search(r"^all +3 +1 +unknown$", text, re.MULTILINE)


def test_a_small_network_has_a_forecast(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-m", *SMALL, "seed=3", "adapter=none,bitfit", "dry_run=true") == 0
    assert read_rows(capsys.readouterr().out)["all"] == (2, 0)
