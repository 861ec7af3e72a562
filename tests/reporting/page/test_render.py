"""Test the report's page: valid HTML, complete, escaped, in two languages, also in a browser."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from browser import CHROMIUM, visit
from matplotlib.image import imread
from report_example import EVIL, STUDY, cut_answers, example_store
from report_store import Store, report, unpadded
from statsmodels.stats.proportion import proportion_confint

from kinopoisk_ft.reporting.columns import MARKS
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.page.reproduce import published_figures
from kinopoisk_ft.statistics.bootstrap import Interval
from kinopoisk_ft.statistics.predictions import TEXT_CHARACTERS

VOID = {"meta", "link", "br", "img", "hr", "input"}
NAMES = {"bert 178M", "bert 178M + freeze", "bert 178M + LoRA", "mamba 129M", "TF-IDF"}


class Page(HTMLParser):
    """A parser of tags with their attributes, which checks that tags are nested correctly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.locale: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.locale.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return example_store(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session", params=["en", pytest.param("ru", marks=pytest.mark.slow)])
def made(request: pytest.FixtureRequest, store: Store, tmp_path_factory) -> tuple:
    folder = tmp_path_factory.mktemp(f"page-{request.param}")
    _, whole, _ = report(store, folder, "experiment=example", f"language={request.param}")
    text = (folder / "comparison.html").read_text(encoding="utf-8")
    return request.param, folder, whole, text


def test_page_is_well_formed_and_says_its_language(made: tuple) -> None:
    language, _, _, text = made
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.all("html") == [{"lang": language}]
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    anchors = {attrs["href"][1:] for attrs in page.all("a")}
    assert anchors
    assert anchors <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert len(page.all("table")) == len(page.all("caption")) >= 8
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.all("th"))


def test_page_loads_nothing_and_runs_nothing(made: tuple) -> None:
    page = Page(made[3])
    assert page.all("script") == []
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs), tag
        for name in ("src", "href", "xlink:href", "data", "poster", "action"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)
    assert not re.search(r"url\((?!#)|@import", made[3])


def test_reviews_are_escaped_and_cut(made: tuple) -> None:
    page = Page(made[3])
    assert EVIL not in made[3]
    shown = [part for part in page.locale if EVIL in part]
    assert 0 < len(shown) <= 10
    assert max(map(len, shown)) == TEXT_CHARACTERS


def test_pictures_have_alternative_text(made: tuple) -> None:
    pictures = Page(made[3]).all("svg")
    rows = made[2]["tables"][0]["rows"][:-1]
    # Learning curves of the networks, confusion matrices, and calibration plots.
    costs, forests, others = 3, 1, 4 + 5 + 5
    assert len(pictures) == costs + forests + others
    for attrs in pictures:
        assert attrs["role"] == "img"
        assert len(attrs["aria-label"]) > 40
        assert "viewbox" in attrs
        assert "width" not in attrs
    assert all(name in pictures[0]["aria-label"] for name in NAMES)
    points = {r["approach"]: (r["train_seconds"], r["f1_weighted"]) for r in rows}
    front = [
        name
        for name, (cost, f1) in sorted(points.items(), key=lambda item: item[1])
        if not any(c <= cost and f >= f1 for c, f in points.values() if (c, f) != (cost, f1))
    ]
    assert 1 < len(front) < len(NAMES)
    said = Locale(made[0]).listed(front)
    assert pictures[0]["aria-label"].endswith(f": {said}.")


def test_answer_says_no_more_than_the_intervals(made: tuple) -> None:
    language, _, whole, text = made
    locale = Locale(language)
    table = whole["tables"][0]
    assert len(table["recommendations"]) == 4
    said = " ".join(Page(text).locale)
    assert all(line in said for line in table["recommendations"] + table["conclusions"])
    for pair in table["comparison"]["pairs"]:
        found = pair["differences"]["f1_weighted"]
        if found["low"] <= 0 <= found["high"]:
            ends = {end: locale.score(found[end], signed=True) for end in ("low", "high")}
            worse = locale("verdict_worse", margin=locale.number(0.02, 2), scope="", **ends)
            assert worse not in said
    assert not re.search(r"\bbetter than\b(?! those on it)|лучше, чем", said)


def test_table_has_costs_marks_and_the_majority_class(made: tuple) -> None:
    language, _, whole, text = made
    locale = Locale(language)
    head, rows = re.findall(r'<table class="results">.*?</table>', text, re.S)[0].split("<tbody>")
    for column in ("tokens_per_second", "peak_memory_mb", "characters_seen_share", "f1_macro"):
        assert locale(column) in head
    marks = [row[mark] for row in whole["tables"][0]["rows"] for mark in MARKS]
    assert rows.count('class="mark"') == marks.count(True) >= 3
    assert locale("majority") in rows
    for row in whole["tables"][0]["rows"][:-1]:
        assert locale.number(row["peak_memory_mb"], 0) in rows
        assert locale.score(row["f1_weighted"]) in rows


def test_rows_can_be_repeated_and_leakage_is_told(made: tuple) -> None:
    locale, said = Locale(made[0]), " ".join(Page(made[3]).locale)
    start = "python -m kinopoisk_ft"
    for model, *_, experiment in STUDY:
        if model == "tfidf":
            whole = f"{start} experiment={experiment} seed=0 'data.path=/data/two words.csv'"
        else:
            given = "--config-dir my hydra.mode=RUN"
            whole = f"{start} {given} experiment={experiment} sweep=study seed=0"
        assert whole in said
    assert said.count(locale("command_partial")) == 1
    assert "mlflow.db" not in said
    for part in ("0123456789ab", "torch 2.13.0", "A processor", "bf16"):
        assert part in said
    assert locale("leakage_near_duplicates") in said
    assert locale("sizes", parts=f"train {locale.number(1500, 0)}, test 600") in said


def test_slices_by_what_was_cut_off(made: tuple) -> None:
    """The oracle is the accuracy by truncated share, with Wilson's interval over seeds."""
    locale, text = Locale(made[0]), unpadded(made[1] / "comparison.md")
    said = " ".join(Page(made[3]).locale)
    # The runs of Mamba.
    runs = [cut_answers(seed, 2.2, 0.71**4) for seed in range(3)]
    right = pd.concat([run["predicted"] == run["label"] for run in runs], axis=1).mean(axis=1)
    parts = pd.cut(runs[0]["truncated"], [-1, 0, 0.5, 1], labels=["0", "0-50%", "50-100%"])
    for name, part in right.groupby(parts, observed=True):
        low, high = proportion_confint(part.sum(), len(part), method="wilson")
        interval = locale.interval(Interval(0, low, high), digits=3)
        cell = f"{locale.number(part.mean(), 3)} {interval}"
        line = f"{locale('by_truncated')}: {locale.range(name)}"
        (found,) = re.findall(rf"\| {re.escape(line)} \|[^\n]*{re.escape(cell)}", text)
        assert found
        assert line in said
        assert cell in said
    assert locale("note_truncated") in said


def test_published_figures_stand_beside_ours(made: tuple) -> None:
    locale, said = Locale(made[0]), " ".join(Page(made[3]).locale)
    for figures in published_figures().values():
        assert locale.score(figures["f1_weighted"]) in said
        assert locale.number(figures["trainable_parameters"], 0) in said
    assert said.count(locale("source_ours")) == 4
    assert locale("published_note") in said


def test_latex_is_balanced_and_escaped(made: tuple) -> None:
    text = (made[1] / "comparison.tex").read_text(encoding="utf-8")
    body = "\n".join(line for line in text.splitlines() if not line.startswith("% "))
    for name in re.findall(r"\\begin\{(\w+)\}", body):
        assert body.count(rf"\begin{{{name}}}") == body.count(rf"\end{{{name}}}")
    plain = re.sub(r"\\.", "", body)
    assert plain.count("{") == plain.count("}")
    rows = [line for line in body.splitlines() if line.endswith(r" \\")]
    assert len(rows) == 1 + len(NAMES) + 1
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    assert not re.search(r"(?<!\\)[_#]", body)
    assert not set("±−\N{NO-BREAK SPACE}<>") & set(body)


def test_report_is_logged_to_its_sweep(store: Store, tmp_path: Path) -> None:
    def kept() -> set[str]:
        return {Path(f.path).name for f in store.client.list_artifacts(other, "report")}

    home = store.client.get_run(store.sweep).info.experiment_id
    other = store.client.create_run(home).info.run_id
    (run,) = store.client.search_runs([home], "tags.model = 'tfidf'")
    store.client.set_tag(run.info.run_id, "mlflow.parentRunId", other)
    report(store, tmp_path / "a", f"parent={other}", "--no-log")
    assert kept() == set()
    report(store, tmp_path / "b", f"parent={other}")
    assert kept() == {path.name for path in (tmp_path / "b").iterdir()}
    assert "comparison.html" in kept()
    store.client.set_tag(run.info.run_id, "mlflow.parentRunId", store.sweep)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_it(made: tuple, width: int, tmp_path: Path) -> None:
    page, shot = made[1] / "comparison.html", tmp_path / "page.png"
    dom, complaints = visit(page, f"--window-size={width},2000", "--dump-dom")
    assert complaints == ""
    assert "<table" in dom
    assert dom.count("<svg") == 18
    visit(page, f"--window-size={width},2000", f"--screenshot={shot}")
    assert imread(shot).shape[:2] == (2000, width)
