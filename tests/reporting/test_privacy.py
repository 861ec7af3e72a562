"""Test that a report contains only short excerpts of reviews, and nothing about their authors."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_store import Store, answers

from kinopoisk_ft.commands.report import main
from kinopoisk_ft.statistics.predictions import TEXT_CHARACTERS, as_table

WHO = ("author", "login", "user", "author_name", "username")


def published(output: Path) -> str:
    """Return all texts of a report, also without the tags and entities of its page."""
    texts = [f.read_text("utf-8") for f in sorted(output.iterdir()) if f.suffix != ".png"]
    assert len(texts) > 6
    return "\n".join([*texts, *(html.unescape(re.sub("<[^>]*>", "", text)) for text in texts)])


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "ru"])
def test_excerpts_are_short_and_no_author_is_named(tmp_path: Path, language: str) -> None:
    store = Store(tmp_path)
    home = store.experiment("x")
    texts: dict[int, str] = {}
    for name, skill in (("bert", 0.0), ("mamba", 0.1)):
        approach = (name, "none", 10.0, 100, 100)
        run_id = store.answered(home, approach, 0, skill)
        table = answers(0, skill)
        texts = {row: " ".join(f"слово{row}x{k}" for k in range(90)) for row in table["row"]}
        # Columns that earlier versions recorded, or that another program adds.
        table["text"] = table["row"].map(texts).str.slice(0, 500)
        for column in WHO:
            table[column] = [f"Имя_автора_{row}" for row in table["row"]]
        table.to_parquet(tmp_path / "predictions.parquet", index=False)
        store.client.log_artifact(run_id, str(tmp_path / "predictions.parquet"))
    args = ["--uri", store.uri, "--experiment", "x", "--language", language]
    assert main([*args, "--output", str(tmp_path / "report")]) == 0
    found = published(tmp_path / "report")
    shown = [row for row, text in texts.items() if text[:100] in found]
    assert len(shown) == 10
    assert "Имя_автора" not in found
    for row in shown:
        assert texts[row][:TEXT_CHARACTERS] not in found
    for part in re.findall(r"слово\d+x\d+(?: слово\d+x\d+)*", found):
        assert len(part) <= TEXT_CHARACTERS


def test_predictions_keep_no_author_and_a_short_text() -> None:
    part = pd.DataFrame({"text": ["а" * 900, "б"], "label": [0, 1], "row": [0, 1]})
    part = part.assign(**{column: ["Иван", "Пётр"] for column in WHO})
    table = as_table(part, np.full((2, 2), 0.5), ("Bad", "Good"), part)
    assert not {*WHO} & {*table.columns}
    assert table["text"].str.len().tolist() == [TEXT_CHARACTERS, 1]
    assert TEXT_CHARACTERS <= 200
