"""The report's page in Chromium: what a reader sees at first, widths, print, contrast, script."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from browser import CHROMIUM, DARK, ask, count_pages, load_axe, visit
from report_example import example_store
from report_store import report

from kinopoisk_ft.reporting.page.render import SCRIPT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
DESKTOP, PHONE = (1280, 900), (390, 844)
OPEN = "page.document.querySelectorAll('details').forEach((one) => one.open = true);"
BOTTOMS = """
return [".answer", ".card:last-child", ".first figure"].map(
  (part) => page.document.querySelector(part).getBoundingClientRect().bottom);"""
# Parts of the page that reach beyond its right edge and cannot be scrolled into view.
OVERFLOW = """
const all = [...page.document.querySelectorAll("body *")];
return all.filter((one) => !one.closest(".scroll, svg, .tip"))
  .filter((one) => one.getBoundingClientRect().right > page.innerWidth + 1)
  .map((one) => one.outerHTML.slice(0, 200));"""


@pytest.fixture(scope="module", params=["en", "ru"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = example_store(tmp_path_factory.getbasetemp())
    folder = tmp_path_factory.mktemp(f"browser-{request.param}")
    report(store, folder, "experiment=example", f"language={request.param}", "--no-log")
    return folder / "comparison.html"


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_first_screen_has_answer_cards_and_chart(page: Path, size: tuple[int, int]) -> None:
    answer, cards, chart = ask(page, BOTTOMS, *size)
    assert 0 < answer < cards
    assert max(cards, chart) <= size[1]


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
@pytest.mark.parametrize("state", ["folded", "unfolded"])
def test_nothing_overflows(page: Path, size: tuple[int, int], state: str) -> None:
    assert ask(page, (OPEN if state == "unfolded" else "") + OVERFLOW, *size) == []


def test_folded_page_is_short(page: Path) -> None:
    height = ask(page, "return page.document.documentElement.scrollHeight;", *DESKTOP)
    assert 900 < height <= 3000


def test_console_is_silent(page: Path) -> None:
    dom, complaints = visit(page, "--dump-dom")
    assert complaints == ""
    assert 'class="copy"' in dom


def test_print_has_at_most_six_pages(page: Path, tmp_path: Path) -> None:
    assert 1 < count_pages(page, tmp_path) <= 6


@pytest.mark.parametrize("flags", [(), (DARK,)], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_axe_finds_nothing(
    page: Path, size: tuple[int, int], flags: tuple[str, ...], tmp_path: Path
) -> None:
    # The policy of the page forbids other scripts.
    text = re.sub("<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    copy = tmp_path / "page.html"
    copy.write_text(text, encoding="utf-8")
    axe = json.dumps(load_axe()).replace("</", r"<\/")
    script = f"""{OPEN}
page.eval({axe});
const found = await page.axe.run(page.document);
return [found.passes.length, found.violations.map((one) => [one.id,
  ...one.nodes.slice(0, 3).map((node) => node.html.slice(0, 200) + node.failureSummary)])];"""
    passes, violations = ask(copy, script, *size, *flags)
    assert passes > 10
    assert violations == []


def test_script_sorts_and_shows_values(page: Path) -> None:
    script = """
const body = page.document.querySelector("table.main tbody");
const read = () => [...body.rows].slice(0, -1).map((row) => Number(row.cells[1].dataset.number));
const button = page.document.querySelectorAll("table.main th button")[1];
const start = read();
button.click();
const rising = read(), last = body.rows[body.rows.length - 1].className;
button.click();
const point = page.document.querySelector("[data-tip]");
point.dispatchEvent(new page.Event("pointerover", {bubbles: true}));
const small = ["<0.001", "<0,001"].map((text) => page.readNumber(text));
const tip = page.document.querySelector(".tip");
return [start, rising, last, read(), tip.hidden, tip.textContent, point.dataset.tip, small];"""
    start, rising, last, falling, hidden, shown, tip, small = ask(page, script, *DESKTOP)
    assert len(start) == 5
    assert rising == sorted(start)
    assert falling == sorted(start, reverse=True)
    assert last == "fixed"
    assert not hidden
    assert shown == tip
    # Small p-values are numbers, so they are not sorted behind all others.
    assert 0.001 in small


def test_command_is_copied_or_selected(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    text = (
        f"<body data-copied='copied'><pre>command</pre><script>{SCRIPT.read_text('utf-8')}</script>"
    )
    file.write_text(text, encoding="utf-8")
    script = """
const button = page.document.querySelector(".copy"), copied = [];
const setClipboard = (value) =>
  Object.defineProperty(page.navigator, "clipboard", {value, configurable: true});
const wait = () => new Promise((done) => setTimeout(done, 50));
setClipboard(undefined);
button.click();
await wait();
const selected = page.getSelection().toString();
setClipboard({writeText: async (text) => copied.push(text)});
button.click();
await wait();
return [selected, copied, button.textContent];"""
    assert ask(file, script, *DESKTOP) == ["command", ["command"], "copied"]
