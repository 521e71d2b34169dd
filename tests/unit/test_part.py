"""Parts of a long job: how they are written, and what each has."""

from __future__ import annotations

import pytest

from prefetch_compiler.errors import InvalidOptionError
from prefetch_compiler.part import Part, parse_part


def test_how_a_part_is_written() -> None:
    assert parse_part("") == Part(1, 1)
    assert parse_part(" 2/4 ") == Part(2, 4)
    assert str(Part(2, 4)) == "2/4"


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/", "/2", "a/b", "-1/2", "1/2/3", "1/99999"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(InvalidOptionError, match="K/N with K from 1 to N"):
        parse_part(text)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_parts_have_everything_once_and_about_as_much_each(count: int) -> None:
    items = tuple("abcdefghijk")
    for shares in ([Part(k, count).of(items) for k in range(1, count + 1)],
                   [Part(k, count).stretch_of(items) for k in range(1, count + 1)]):  # fmt: skip
        assert sorted(item for share in shares for item in share) == list(items)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_stretch_is_in_one_piece() -> None:
    assert Part(2, 3).stretch_of("abcdef") == ("c", "d")
    assert Part(2, 3).of("abcdef") == ("b", "e")
