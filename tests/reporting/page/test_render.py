"""Test the report's page: valid HTML, complete, escaped, in two languages, also in a browser."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from report_example import DATA, EVIL, LEAKAGE, STUDY, cut_answers, example_store
from report_rows import one_table, trained
from report_store import Store, report, unpadded
from statsmodels.stats.proportion import proportion_confint

from kinopoisk_ft.reporting.columns import MARKS
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.page.render import _leakage_p
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
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert len(page.all("table")) == len(page.all("caption")) >= 8
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.all("th"))


def test_page_loads_nothing_and_runs_its_own_script_alone(made: tuple) -> None:
    """The policy of the page allows one script, by its digest."""
    page = Page(made[3])
    assert page.all("script") == [{}]
    (script,) = re.findall("<script>(.*?)</script>", made[3], re.S)
    assert "innerHTML" not in script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
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
    # Three costs, three metrics of training, and the calibration of each approach.
    assert len(pictures) == 3 + 3 + 5
    for attrs in pictures:
        assert attrs["role"] == "img"
        assert len(attrs["aria-label"]) > 40
        assert "viewbox" in attrs
        assert "width" not in attrs
    assert all(name in pictures[0]["aria-label"] for name in NAMES)
    assert {name for name in NAMES for tip in tips_of(made[3]) if tip.startswith(name)} == NAMES
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
    # A bound above 0 is evidence against "worse".
    worse = locale("verdict_worse", margin=locale.number(0.02, 2), bounds="BOUNDS")
    start, end = map(re.escape, worse.split("BOUNDS"))
    bounds = re.findall(rf"{start}([^)]*){end}", said)
    assert any(bounds)
    assert not any("+" in found for found in bounds)
    assert not re.search(r"\bbetter than\b(?! those on it)|лучше, чем", said)


def tips_of(text: str) -> list[str]:
    return [attrs["data-tip"] for _, attrs in Page(text).tags if "data-tip" in attrs]


def test_each_approach_has_one_colour(made: tuple) -> None:
    """In the legends, the tables and the pictures."""
    text, names = made[3], sorted(NAMES, key=len, reverse=True)
    markers = re.findall(r'style="color: var\((--a\d)\)">.</span> ([^<]+)<', text)
    colours = {name: {c for c, label in markers if label.split(" \u2212 ")[0] == name}
               for name in names}  # fmt: skip
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == len(NAMES)
    points = re.findall(r'id="[^"]*-point-\d" data-tip="([^"]+)">.*?</g>', text, re.S)
    assert len(points) == 3 * len(NAMES)
    for match in re.finditer(r'-point-\d" data-tip="([^"]+)">(.*?)</g>', text, re.S):
        name = next(name for name in names if match[1].startswith(f"{name}:"))
        assert set(re.findall(r"--a\d", match[2])) == colours[name]


def test_first_screen_has_the_answer_cards_and_five_columns(made: tuple) -> None:
    language, _, whole, text = made
    locale, table = Locale(language), whole["tables"][0]
    said = " ".join(Page(text).locale)
    assert table["answer"] in said
    assert text.count('class="card"') == 4
    badges = re.findall(r'class="badge (\w+)"', text)
    assert set(badges) <= {"reference", "as_good", "worse", "undecided"}
    (main,) = re.findall(r'<table class="sortable bars main">.*?</table>', text, re.S)
    assert main.count('<th scope="col">') == 5
    for row in table["rows"][:-1]:
        assert locale.number(row["f1_weighted"], 3) in main
    for caveat in table["caveats"]:
        assert said.count(caveat) == 1
    facts = " ".join(re.findall(r'<p class="facts">(.*?)</p>', text))
    for part in (
        "A processor",
        "torch 2.13.0",
        "seed",
        locale("part_train"),
        locale.number(1500, 0),
    ):
        assert part in facts


def test_forest_agrees_with_the_verdicts(made: tuple) -> None:
    """Its bars end where the verdicts say, relative to the left edge of the margin."""
    (forest,) = re.findall(r'<table class="sortable bars forest">.*?</table>', made[3], re.S)
    edge = float(re.findall(r"--from: ([\d.]+)%", forest)[0])
    bars = re.findall(r"--low: ([\d.]+)%; --at: [\d.]+%; --high: ([\d.]+)%.*?badge (\w+)", forest,
                      re.S)  # fmt: skip
    assert len(bars) == len(NAMES) - 1
    for low, high, verdict in bars:
        above, below = float(low) >= edge, float(high) <= edge
        assert verdict == ("as_good" if above else "worse" if below else "undecided")


def test_table_has_costs_marks_and_the_majority_class(made: tuple) -> None:
    language, _, whole, text = made
    locale = Locale(language)
    (found,) = re.findall(r'<table class="sortable results">.*?</table>', text, re.S)
    head, rows = found.split("<tbody>")
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
    for name in ("file_csv", "machine_readable", "repeat"):
        assert locale(name) in said


def test_the_p_value_of_a_guess_by_film_is_only_that_of_all_training_reviews() -> None:
    """Each subset of the training reviews has its own p-value, and data.json is that of one run."""
    runs = [trained(seed=seed) for seed in range(2)]
    subsets = [replace(run, train_seed=run.seed) for run in runs]
    for chosen, told in ((runs, True), (subsets, False)):
        assert ("p < 0.001" in _leakage_p(one_table(*chosen), DATA, Locale("en"))) == told
    no_films = {**DATA, "leakage": LEAKAGE | {"leakage_films": 0}}
    assert _leakage_p(one_table(*runs), no_films, Locale("en")) == ""


def test_slices_by_what_was_cut_off(made: tuple) -> None:
    """The oracle is the accuracy by truncated share, with Wilson's interval over seeds."""
    locale, text = Locale(made[0]), unpadded(made[1] / "comparison.md")
    said = " ".join(Page(made[3]).locale)
    # The runs of Mamba.
    runs = [cut_answers(seed, 2.2, 0.71**4) for seed in range(3)]
    right = pd.concat([run["predicted"] == run["label"] for run in runs], axis=1).mean(axis=1)
    parts = pd.cut(runs[0]["truncated"], [-1, 0, 0.5, 1], labels=["0", "0-50%", "50-100%"])
    half = locale.percent(0.5)
    shown = (locale("cut_none"), locale("cut_less", half=half), locale("cut_more", half=half))
    for name, (_, part) in zip(shown, right.groupby(parts, observed=True), strict=True):
        low, high = proportion_confint(part.sum(), len(part), method="wilson")
        interval = locale.interval(Interval(0, low, high), digits=3)
        cell = f"{locale.number(part.mean(), 3)} {interval}"
        line = f"{locale('by_truncated')}: {name}"
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
