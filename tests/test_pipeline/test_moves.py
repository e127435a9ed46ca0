"""Moves: which new file is which lost one, also among copies, and under another collection's name."""

from typing import Any

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from pipeline import add_labels
from pipeline.moves import moves

NAMES = st.sampled_from(["a", "b", "c/a", "c/b", "d/a", "d/c/a", "e/f/a"])


def paired(new: dict[str, str], lost: dict[str, str]) -> dict[str, str]:
    """New name by old name."""
    pairs = moves(
        pd.DataFrame({"track_id": list(new), "content": list(new.values())}, dtype=object),
        pd.DataFrame(
            {"track_id": list(lost), "content_hash": list(lost.values()), "part": "p"}, dtype=object
        ),
    )
    names = list(new)
    return {old: names[number] for number, old in zip(pairs["index"], pairs["old_track_id"], strict=True)}


def test_copies_keep_their_folders() -> None:
    lost = {"m/album/one.wav": "x", "m/best of/one.wav": "x", "m/two.wav": "y"}
    new = {"m/Sorted/best of/one.wav": "x", "m/Sorted/album/one.wav": "x", "m/Sorted/zwei.wav": "y"}
    assert paired(new, lost) == {
        "m/album/one.wav": "m/Sorted/album/one.wav",
        "m/best of/one.wav": "m/Sorted/best of/one.wav",
        "m/two.wav": "m/Sorted/zwei.wav",
    }


def test_more_copies_than_were_lost() -> None:
    assert paired({"m/x/a": "c", "m/y/a": "c", "m/z/b": "c"}, {"m/q/b": "c"}) == {"m/q/b": "m/z/b"}


@given(
    st.dictionaries(NAMES, st.sampled_from("xyz"), max_size=7),
    st.dictionaries(NAMES.map("old/".__add__), st.sampled_from("xyz"), max_size=7),
)
def test_as_many_as_there_are_of_each_content(new: dict[str, str], lost: dict[str, str]) -> None:
    pairs = paired(new, lost)
    assert len(set(pairs.values())) == len(pairs)
    assert all(lost[old] == new[name] for old, name in pairs.items())
    for content in "xyz":
        expected = min(list(new.values()).count(content), list(lost.values()).count(content))
        assert sum(lost[old] == content for old in pairs) == expected


def test_moved_copies_keep_their_labels(empty_project: Any) -> None:
    for name in ("album/one.wav", "best of/one.wav"):
        empty_project.add_song(name, seconds=1.0, seed=1)
    empty_project.extract()
    moods = {"demo/album/one.wav": "calm", "demo/best of/one.wav": "wild"}
    add_labels(empty_project.store_folder, pd.DataFrame({"track_id": list(moods), "mood": moods.values()}))
    (empty_project.music / "Sorted").mkdir()
    for name in ("album", "best of"):
        (empty_project.music / name).rename(empty_project.music / "Sorted" / name)
    report = empty_project.extract()
    assert (report.songs, report.moved, report.gone) == (0, 2, 0)
    assert empty_project.store.tracks["mood"].to_dict() == {
        "demo/Sorted/album/one.wav": "calm",
        "demo/Sorted/best of/one.wav": "wild",
    }


def test_a_collection_of_another_name_is_not_decoded_again(empty_project: Any) -> None:
    for name in ("one.wav", "two.wav"):
        empty_project.add_song(name, seconds=1.0, seed=len(name))
    empty_project.extract()
    before = empty_project.rows()
    catalog = empty_project.catalog.read_text()
    assert "  demo: " in catalog
    empty_project.catalog.write_text(catalog.replace("  demo: ", "  mine: "))
    assert empty_project.plan() == {
        f"mine/{name}": ("move", "moved, same content") for name in ("one.wav", "two.wav")
    }
    report = empty_project.extract()
    assert (report.songs, report.moved) == (0, 2)
    assert empty_project.rows() == {
        (track_id.replace("demo/", "mine/"), version): rows for (track_id, version), rows in before.items()
    }
    assert empty_project.plan() == {}
