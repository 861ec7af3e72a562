"""Test the cost model against hand calculations, and the page's table against the script."""

from __future__ import annotations

from types import ModuleType

import pytest
from places import ROOT


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import cost_model

    return cost_model


def test_hours_money_and_messages(costs: ModuleType) -> None:
    args = costs.options().parse_args([])
    full = next(row for row in costs.rows(args) if row["model"] == "1 B, full")
    weights = 24 * (4 + 8) * 1792**2
    assert weights + 50_000 * 1792 == pytest.approx(1e9, rel=0.02)
    flops = 6 * weights * 3e6 * 256
    assert full["EFLOP"] == pytest.approx(flops / 1e18)
    hours = flops / (0.3 * 989e12) / 3600
    assert full["h on 1"] == pytest.approx(hours)
    assert full["$ on 1"] == pytest.approx(3 * hours)
    steps = 3e6 / (32 * 64)
    sent = steps * 2 * 63 / 64 * 4 * (weights + 50_000 * 1792) / 40e9 / 3600
    assert full["h on 64"] == pytest.approx(hours / 64 + sent)
    assert full["messages % on 64"] == pytest.approx(100 * sent / (hours / 64 + sent))


def test_frozen_layers_cost_a_forward_pass(costs: ModuleType) -> None:
    assert [costs.frozen(share).flops for share in (0, 0.5, 1)] == [2, 4, costs.FULL.flops]


def test_the_page_has_the_script_s_table(costs: ModuleType) -> None:
    from common.report import markdown_table

    table = markdown_table(costs.rows(costs.options().parse_args([])))
    for file in ("docs/scale.md", "benchmarks/results/cost_model.md"):
        assert table in (ROOT / file).read_text(encoding="utf-8")
