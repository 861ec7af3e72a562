"""Test the messages of errors."""

from __future__ import annotations

import pytest

from kinopoisk_ft.errors import UserError, first_line, import_extra


def test_the_first_line_stands_for_an_error() -> None:
    assert first_line(OSError("disk full\n[SQL: SELECT 1]")) == "disk full"
    assert first_line(TimeoutError()) == "TimeoutError"


def test_a_missing_extra_is_reported_with_its_command() -> None:
    assert import_extra("json.decoder", "onnx").JSONDecoder
    with pytest.raises(UserError, match=r"the package nothing_here is not installed") as caught:
        import_extra("nothing_here.inner", "onnx")
    assert "pip install -e '.[onnx]'" in str(caught.value)
