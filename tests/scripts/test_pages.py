from pathlib import Path

import pytest

from scripts.bench.pages import replace_between


def test_tables_are_put_where_the_page_wants_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nbetween\n<!-- b -->\n<!-- end of b -->\n", "utf-8")
    for _ in range(2):
        replace_between(page, {"a": "new", "b": "second"})
    assert page.read_text("utf-8") == (
        "before\n<!-- a -->\nnew\n<!-- end of a -->\nbetween\n<!-- b -->\nsecond\n<!-- end of b -->\n"
    )


def test_a_page_without_the_place_stays_as_it_was(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- a -->\nold\n<!-- end of a -->\n", "utf-8")
    with pytest.raises(ValueError, match="lacks '<!-- b -->'"):
        replace_between(page, {"a": "new", "b": "second"})
    assert "old" in page.read_text("utf-8")
