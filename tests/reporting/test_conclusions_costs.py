"""Test how the conclusions of the report compare costs: time, trainable parameters, memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_rows import one_table, trained

from kinopoisk_ft.reporting.conclusions import answer, choices, conclusions
from kinopoisk_ft.reporting.locale import LANGUAGES, Locale
from kinopoisk_ft.reporting.notes import table_notes
from kinopoisk_ft.reporting.table import Table

EN = Locale("en")
NBSP = "\N{NO-BREAK SPACE}"


def recommendations(table: Table) -> list[str]:
    return [choice.text for choice in choices(table, EN)]


def test_costs_that_cannot_be_compared_do_not_decide() -> None:
    """The training times would recommend bert, which is as good as gru."""
    times = {"bert": (40.0, 41.0, 42.0), "gru": (100.0, 101.0, 102.0)}

    def answered(device: str = "cpu", parameters: float = 1000.0, **others: tuple) -> str:
        runs = [
            trained(name, seed=seed, test_f1_weighted=0.9 if name == "bert" else 0.91,
                    train_seconds=seconds, device=device if name == "bert" else "cpu",
                    trainable_parameters=parameters if name == "bert" else 1000.0)
            for name, values in (times | others).items()
            for seed, seconds in enumerate(values)
        ]  # fmt: skip
        for run in runs:
            for key in ("train_seconds", "trainable_parameters"):
                if not run.metrics[key]:
                    del run.metrics[key]
        return answer(one_table(*runs, answered={"bert": [3.0] * 3, "gru": [3.05] * 3}), EN)

    assert answered().endswith(f"and trains in 41.0{NBSP}s instead of 101.0{NBSP}s.")
    # The numbers of parameters decide instead.
    for changes in ({"bert": (20.0, 41.0, 42.0)}, {"bert": (0.0,) * 3}, {"device": "cuda"}):
        assert answered(**changes).endswith("saves more than 10% of the trainable parameters.")
        assert answered(**changes, parameters=500.0).endswith(
            "trains 500 parameters instead of 1,000."
        )
    neither = answered("cuda", parameters=0.0)
    assert neither.endswith("Costs did not decide, because they cannot be compared.")


def test_each_loss_in_score_pays_for_a_saving() -> None:
    """All three are as good; the last saves too little compared with the second."""
    costs = {"gru": (0.91, 100.0), "bert": (0.905, 41.0), "mamba": (0.9, 40.0)}
    runs = [trained(name, seed=seed, test_f1_weighted=f1, train_seconds=seconds)
            for name, (f1, seconds) in costs.items() for seed in range(3)]  # fmt: skip
    table = one_table(*runs, answered={name: [3.0] * 3 for name in costs})
    assert answer(table, EN).startswith("Take bert: it is as good as gru")


def test_cards_have_few_words() -> None:
    runs = [trained("e5-small-ru", "lora", settings={"adapter.config.r": "8"}), trained("gru")]
    large = [
        replace(run, metrics=run.metrics | dict.fromkeys(
            ("train_seconds", "trainable_parameters", "peak_memory_mb"), 5.0 + i
        ) | {"total_parameters": 3e7})
        for i, run in enumerate(runs)
    ]  # fmt: skip
    for language in LANGUAGES:
        locale = Locale(language)
        found = choices(one_table(*large), locale)
        assert [card.limit for card in found] == ["time", "parameters", "memory", "quality"]
        for card in found:
            shown = (card.name, card.number, card.reason, card.badge and locale(card.badge),
                     locale(f"limit_name_{card.limit}"))  # fmt: skip
            assert len(" ".join(shown).split()) <= 15


def test_equal_costs_are_not_called_the_lowest() -> None:
    """Two learning rates of one approach have the same parameters."""
    runs = [trained(settings={"trainer.lr": lr}, train_seconds=float(lr)) for lr in ("1", "2")]
    assert [card.limit for card in choices(one_table(*runs), EN)] == ["time", "quality"]


def test_memory_is_compared_only_on_one_kind_of_device() -> None:
    """On a CPU, the process needs more memory than PyTorch allocates on a GPU."""
    sizes = {"bert": 1500.0, "gru": 1300.0, "tfidf": 700.0}
    for device, said, card in (
        ("cuda", "gru has the lowest peak of those measured on cuda, 1,300", "lowest of those"),
        ("cpu", "TF-IDF has the lowest peak, 700", "lowest; weighted F1"),
    ):
        runs = [trained(name, device="cpu" if name == "tfidf" else device) for name in sizes]
        for run in runs:
            run.metrics["peak_memory_mb"] = sizes[run.model]
        table = one_table(*runs)
        assert any(said in text for text in recommendations(table))
        (found,) = [choice.reason for choice in choices(table, EN) if choice.limit == "memory"]
        assert found.startswith(card)
        notes = " ".join(table_notes(table, EN))
        assert ("Only the peak memory of the approaches on cuda is compared." in notes) == (
            device == "cuda"
        )
        assert ("cpu (TF-IDF)" in notes) == (device == "cuda")
        alone = one_table(runs[0], runs[2])
        assert ("memory" in [choice.limit for choice in choices(alone, EN)]) == (device == "cpu")


@pytest.mark.parametrize(
    ("unmeasured", "fastest"), [("mamba", "bert"), ("bert", "gru"), ("gru", "bert")]
)
def test_the_fastest_is_the_fastest_of_those_measured(unmeasured: str, fastest: str) -> None:
    runs = [trained("gru", test_f1_weighted=0.95, train_seconds=5.0),
            trained("bert", train_seconds=3.0), trained("mamba", train_seconds=9.0)]  # fmt: skip
    for run in runs:
        if run.model == unmeasured:
            del run.metrics["train_seconds"]
        run.metrics["trainable_parameters"] += len(run.model)
    cards = {card.limit: card for card in choices(one_table(*runs), EN)}
    assert f"{fastest} trains fastest of those measured, in " in cards["time"].text
    assert cards["time"].reason.startswith("trains fastest of those measured; weighted F1")
    assert cards["parameters"].reason.startswith("fewest; weighted F1")


def with_times(**times: tuple[float, float]) -> Table:
    """Return a table of approaches with two seeds; `times` are their training times."""
    return one_table(*(
        trained(*name.split("_"), seed=seed, train_seconds=value)
        for name, values in times.items()
        for seed, value in enumerate(values)
    ))  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_doubtful_times_are_never_called_fastest(language: str) -> None:
    """The mean time of bert is the lowest, but one of its runs was much slower than the other."""
    locale = Locale(language)
    table = with_times(bert=(10.0, 30.0), gru=(50.0, 51.0), lstm=(90.0, 91.0))
    (card,) = [card for card in choices(table, locale) if card.limit == "time"]
    assert card.name == "gru"
    among = {
        "en": "of those with reliable times",
        "ru": "из подходов с надёжно измеренным временем",
    }
    assert among[language] in card.text
    assert among[language] in card.reason
    assert {row.name: row.marked("min_time") for row in table.rows} == {
        "bert": False, "gru": True, "lstm": False
    }  # fmt: skip
    assert "train_seconds" not in table.rows[0].from_best
    low, high = locale.seconds(10.0), locale.seconds(30.0)
    note = locale("note_times", name="bert", low=low, high=high)
    assert note in table_notes(table, locale)
    assert {"en": "not compared", "ru": "не сравнивается"}[language] in note
    few = with_times(bert=(10.0, 30.0), gru=(50.0, 51.0))
    assert "time" not in [card.limit for card in choices(few, locale)]


def test_the_short_times_of_tfidf_may_differ() -> None:
    table = with_times(tfidf=(1.0, 1.9), bert=(50.0, 51.0))
    assert choices(table, EN)[0].name == "TF-IDF"
    assert "training times vary" not in " ".join(table_notes(table, EN))


def test_only_times_that_can_be_compared_are_facts() -> None:
    reliable = with_times(bert=(50.0, 51.0), bert_lora=(25.0, 26.0))
    assert "training in 25.5" in conclusions(reliable, EN)[-1]
    doubtful = with_times(bert=(50.0, 90.0), bert_lora=(25.0, 26.0))
    devices = one_table(trained(), trained("bert", "lora", device="cuda"))
    for table in (doubtful, devices):
        assert "bert + LoRA against full fine-tuning" in conclusions(table, EN)[-1]
        assert "training in" not in conclusions(table, EN)[-1]
