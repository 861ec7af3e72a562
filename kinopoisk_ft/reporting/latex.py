"""The results as LaTeX tables for a paper: booktabs, everything escaped."""

from __future__ import annotations

from kinopoisk_ft.reporting.cells import data_line, results
from kinopoisk_ft.reporting.document import Document
from kinopoisk_ft.reporting.words import MINUS, NO_BREAK_SPACE, Words

SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "±": r"$\pm$", MINUS: "$-$", NO_BREAK_SPACE: "~", "Δ": r"$\Delta$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip
HEAD = r"""% In the preamble: \usepackage{booktabs}, \usepackage{graphicx}
% and for Russian: \usepackage[T2A]{fontenc}, \usepackage[russian]{babel}
"""


def as_latex(document: Document, words: Words) -> str:
    """Return a `table` environment for each table of the report."""
    tables = [
        _table(results(s.table, words), data_line(s.table, words), f"tab:comparison-{i}")
        for i, s in enumerate(document.sections, start=1)
    ]
    return HEAD + "\n".join(tables)


def _table(rows: list[list[str]], caption: str, label: str) -> str:
    head, *body = [" & ".join(map(escape, row)) + r" \\" for row in rows]
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{escape(caption)}}}", rf"\label{{{label}}}",
        r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule", head, r"\midrule",
        *body, r"\bottomrule", r"\end{tabular}}", r"\end{table}", "",
    ])  # fmt: skip


def escape(text: str) -> str:
    """Return the text with every sign that LaTeX would read as its own made plain."""
    return "".join(SPECIAL.get(sign, sign) for sign in text)
