"""Guessing the name that was meant, among few names and among many."""

import difflib

import pytest

from pipeline.errors import did_you_mean

MANY = [
    f"{album % 7}/Artist {number:05d}/A Title {number * 7919 % 10_007}.mp3"
    for album in (1, 4)
    for number in range(2000)
]


@pytest.mark.parametrize("number", [0, 1234, 3999])
@pytest.mark.parametrize(
    "typed",
    [
        lambda name: name[1:],
        lambda name: name.replace("mp3", "ogg"),
        lambda name: name.replace("Artist", "Artits"),
        lambda name: f"music/{name}",
    ],
)
def test_a_name_among_many_is_guessed_as_difflib_guesses_it(number, typed) -> None:  # type: ignore[no-untyped-def]
    wrong = typed(MANY[number])
    [close] = difflib.get_close_matches(wrong, MANY, n=1)
    assert did_you_mean(wrong, MANY) == f" Did you mean {close!r}?"


def test_nothing_is_guessed_where_no_name_is_like_it() -> None:
    assert did_you_mean("", MANY) == ""
    assert did_you_mean("quite another", MANY) == ""
