"""A figure as SVG within a page, in the page's own colours, light and dark."""

from __future__ import annotations

import io
import re

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from kinopoisk_ft.reporting.pictures import GREY, INK

# The page's style gives these variables a value for each scheme.
INKS = {INK: "--ink", "#000000": "--ink", GREY: "--faint", "#e4e4e4": "--line", "#ffffff": "--card"}
OUTER = re.compile(r"<svg.*</svg>", re.DOTALL)
METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
SIZE = re.compile(r'(<svg[^>]*?) width="[^"]*"([^>]*?) height="[^"]*"')
COLOUR = re.compile("|".join(INKS))


def inline(figure: Figure, stem: str, alt: str, *, recolour: bool = True) -> Markup:
    """Return the figure with its alternative text; `stem` keeps its ids apart from others'.

    Without `recolour` it stays on white, for pictures whose text lies on colours of its own.
    """
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": stem, "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    found = OUTER.search(stream.getvalue())
    assert found is not None
    text = METADATA.sub("", found[0])
    text = SIZE.sub(r"\1\2", text, count=1)
    text = re.sub(r'\bid="', f'id="{stem}-', text)
    text = text.replace("url(#", f"url(#{stem}-").replace('href="#', f'href="#{stem}-')
    if recolour:
        text = COLOUR.sub(lambda match: f"var({INKS[match[0]]})", text)
    label = f'<svg role="img" class="{"plain" if recolour else "white"}" aria-label="{escape(alt)}"'
    return Markup(label + text.removeprefix("<svg"))
