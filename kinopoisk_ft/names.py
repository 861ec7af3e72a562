"""When two names of films or authors count as one."""

from __future__ import annotations

import re
import unicodedata

# "(2009)", "[сериал, 2009–2011]": a bare number may be the film's own, as of "1408".
_YEAR = re.compile(r"[(\[][^()\[\]]*\b(?:18|19|20)\d\d\b[^()\[\]]*[)\]]\s*$")
_MARKS = re.compile(r"[\"'`«»“”„‘’]+")


def fold_name(name: object) -> str | None:
    """Return a name of a film or author as it is compared; None where there is none.

    Case, ё and е, white space, quotes and a year in brackets at the end count for nothing, so that
    remakes of one name are one film: that can only make a split stricter.
    """
    if not isinstance(name, str):
        return None
    folded = unicodedata.normalize("NFKC", name).casefold().replace("ё", "е")
    folded = " ".join(_MARKS.sub("", _YEAR.sub("", folded)).split())
    return folded or None
