"""Check the count of test reviews that a base was pretrained on, its warning, and "unknown"."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from composing import compose_config
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from report_rows import one_table, trained

from kinopoisk_ft.cli import main
from kinopoisk_ft.data.duplicates import group_near_duplicates
from kinopoisk_ft.data.leakage import FILE, Overlap, PretrainingTexts
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.reporting.conclusions import conclusions
from kinopoisk_ft.reporting.frames import leakage
from kinopoisk_ft.reporting.locale import LANGUAGES, Locale
from kinopoisk_ft.reporting.notes import table_notes

NAMES = st.lists(st.sampled_from(["Хорошо.", "хорошо", "плохо", "Плохо!!", "ёж", "еж"]), max_size=6)
DATA = ["data=file", "data.path=reviews.jsonl", "data.text_column=text", "data.label_column=mark"]
SMALL = [*DATA, "data.max_length=16", "trainer.device=cpu", "trainer.precision=fp32",
         "trainer.epochs=1"]  # fmt: skip
BERT = ["model=bert_scratch", "model.hidden_size=16", "model.num_layers=2",
        "model.max_positions=64", "model.vocab_size=120"]  # fmt: skip


@given(NAMES, NAMES)
def test_pretraining_overlap_equals_near_duplicates(read: list[str], tests: list[str]) -> None:
    groups = group_near_duplicates([*read, *tests])
    met = np.isin(groups[len(read) :], groups[: len(read)]).sum()
    assert PretrainingTexts.of(None).add(read).overlap(tests) == Overlap(int(met), len(tests))


def test_a_record_says_how_much_it_knows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert PretrainingTexts.of(None).overlap(["да"]) == Overlap(0, 1)
    assert PretrainingTexts.of("a/hub-name").overlap(["да"]) is None
    assert PretrainingTexts.of(str(tmp_path)).overlap(["да"]) is None
    # The base has no record.
    PretrainingTexts.of(str(tmp_path)).add(["да"]).write(tmp_path)
    assert PretrainingTexts.of(str(tmp_path)).overlap(["нет"]) is None
    assert PretrainingTexts.of(str(tmp_path)).overlap(["Да", "нет"]) == Overlap(1, 2)
    PretrainingTexts.of(None).add(["да"]).write(tmp_path)
    # A base without a record, then one that continues another.
    PretrainingTexts.of(str(tmp_path)).add(["нет"]).write(tmp_path)
    assert PretrainingTexts.of(str(tmp_path)).overlap(["да", "нет", "что"]) == Overlap(2, 3)
    assert caplog.text == ""
    (tmp_path / FILE).write_bytes(b"damaged")
    assert PretrainingTexts.of(str(tmp_path)).overlap(["да"]) is None
    assert "cannot be read" in caplog.text


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    texts, labels = tiny.reviews(80)
    frame = pd.DataFrame({"text": [f"{t} {i}" for i, t in enumerate(texts)], "mark": labels})
    frame.to_json(tmp_path / "reviews.jsonl", orient="records", lines=True, force_ascii=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sys, "argv", sys.argv)
    return tmp_path


def split(seed: int) -> DataSplit:
    found: DataSplit = instantiate(compose_config([*DATA, f"data.split_seed={seed}"]).data).load()
    return found


@pytest.mark.slow
def test_a_base_of_another_split_is_warned_about(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain = ["task=pretrain", "task.save_to=base", "trainer.best_metric=loss", "tracking=none"]
    assert main([*SMALL, *BERT, *pretrain, "output_dir=pre"]) == 0
    tune = [*SMALL, "model=encoder", "model.name=base", "adapter=head"]
    for seed in (42, 7):
        assert main([*tune, f"data.split_seed={seed}", f"output_dir=tuned{seed}"]) == 0
    (place / "base" / FILE).unlink()
    assert main([*tune, "data.split_seed=7", "output_dir=unknown"]) == 0
    assert main([*SMALL, "model=tfidf", "output_dir=words"]) == 0
    first, other = split(42), split(7)
    read = {*first.train["row"], *first.val["row"]}
    met = sum(row in read for row in other.test["row"])
    assert 0 < met < len(other.test)
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("kinopoisk_ft").experiment_id
    found = sorted(client.search_runs([experiment]), key=lambda run: run.info.start_time)
    counts = [run.data.metrics.get("leakage/pretraining") for run in found]
    assert counts == [0, met, None, 0]
    share = found[1].data.metrics["leakage/pretraining_share"]
    assert share == pytest.approx(met / len(other.test))
    warning = f"the base model was pretrained on {met} of the {len(other.test)} test reviews"
    assert capsys.readouterr().out.count(warning) == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_report_warns_or_says_unknown(language: str) -> None:
    locale = Locale(language)
    known = {"leakage_pretraining": 30.0, "leakage_pretraining_share": 0.25}
    none = dict.fromkeys(known, 0.0)
    table = one_table(
        trained("read", seed=0, **none), trained("read", seed=1, **known),
        trained("clean", **none), trained("hub", seed=0, **none), trained("hub", seed=1),
        trained("tfidf"),
    )  # fmt: skip
    parts = {"name": "read", "count": locale.number(30, 0), "share": locale.percent(0.25)}
    warnings = [locale("pretraining_said", **parts)]
    start = locale("pretraining_said", name="\0", count="", share="").partition("\0")[0]
    sentences = conclusions(table, locale)
    assert [line for line in sentences if line.startswith(start)] == warnings
    rows = leakage(table, locale).to_numpy().tolist()
    assert rows == [[locale("pretraining", names="read"), parts["count"], parts["share"]]]
    notes = [locale("note_pretraining_unknown", names="hub")]
    assert [n for n in table_notes(table, locale) if n in notes] == notes
