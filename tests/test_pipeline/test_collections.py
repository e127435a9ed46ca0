"""Scans: what folders and manifests name, and what of it cannot be used."""

import fnmatch
import json
import os
import re
import socket
import unicodedata
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.absences import absence_reasons
from pipeline.catalog import Catalog, load_catalog
from pipeline.collections import Scan, scan
from pipeline.errors import CatalogError, UnknownNameError
from pipeline.globs import AUDIO_ENDINGS, PathFilter, glob_problem, translate

needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
Scanned = Callable[..., Scan]


def catalog_of(folder: Path, collections: dict[str, object]) -> Catalog:
    path = folder / "catalog.yaml"
    text = {"version": 1, "store": "s", "collections": collections, "features": {"audio": {"kind": "audio"}}}
    path.write_text(json.dumps(text))  # JSON is YAML
    return load_catalog(path)


def make(folder: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def ids(table: pd.DataFrame) -> list[str]:
    return list(table["track_id"])


def reasons(found: Scan) -> dict[str, str]:
    return dict(zip(found.problems["track_id"], found.problems["reason"], strict=True))


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "music"
    folder.mkdir()
    return folder


@pytest.fixture
def scanned(tmp_path: Path, music: Path) -> Scanned:
    """A scan of the music folder as the collection `m`."""

    def scanned(**keys: object) -> Scan:
        return scan(catalog_of(tmp_path, {"m": {"path": str(music), **keys}}))

    return scanned


# --- globs -----------------------------------------------------------------------------------------


def reference(path: list[str], pattern: list[str], *, hidden: bool) -> bool:
    """Segment by segment, as the documentation of `PurePath.full_match` has it."""
    if not pattern:
        return not path
    visible = bool(path) and (hidden or not path[0].startswith("."))
    if pattern[0] == "**":
        if len(pattern) == 1:  # a file below: at least one name
            return visible and (len(path) == 1 or reference(path[1:], pattern, hidden=hidden))
        return reference(path, pattern[1:], hidden=hidden) or (
            visible and reference(path[1:], pattern, hidden=hidden)
        )
    named = visible or (bool(path) and pattern[0].startswith("."))
    return (
        named and fnmatch.fnmatchcase(path[0], pattern[0]) and reference(path[1:], pattern[1:], hidden=hidden)
    )


names = st.text("ab.é\n[-", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
segments = st.one_of(
    st.just("**"),
    st.lists(st.sampled_from(["a", "b", ".", "*", "?", "[ab]", "[!a]", "[a-é]", "é"]), min_size=1, max_size=4)
    .map("".join)
    .filter(lambda segment: segment not in (".", "..") and "**" not in segment),
)
patterns = st.lists(segments, min_size=1, max_size=4).map("/".join)


@given(paths, patterns, st.booleans())
def test_globs_match_as_the_reference(path: str, pattern: str, hidden: bool) -> None:
    got = re.fullmatch(translate(pattern, hidden=hidden), path, re.DOTALL) is not None
    assert got == reference(path.split("/"), pattern.split("/"), hidden=hidden)


@given(names, st.text("ab.é*?[]!-", min_size=1, max_size=6).filter(lambda p: "**" not in p))
def test_globs_of_one_name_match_as_fnmatch(name: str, pattern: str) -> None:
    got = re.fullmatch(translate(pattern, hidden=True), name, re.DOTALL) is not None
    assert got == fnmatch.fnmatchcase(name, pattern)


@given(paths, st.lists(patterns, min_size=1, max_size=3), st.lists(patterns, max_size=2))
def test_what_matches_is_reached(path: str, include: list[str], exclude: list[str]) -> None:
    wanted = PathFilter(include, exclude)
    if wanted.matches(path):
        parents = path.split("/")[:-1]
        assert all(wanted.descends("/".join(parents[: n + 1])) for n in range(len(parents)))


@given(paths, st.lists(patterns, min_size=1, max_size=3), st.lists(patterns, max_size=2))
def test_excludes_take_from_includes(path: str, include: list[str], exclude: list[str]) -> None:
    parts = path.split("/")
    included = any(reference(parts, pattern.split("/"), hidden=False) for pattern in include)
    excluded = any(reference(parts, pattern.split("/"), hidden=True) for pattern in exclude)
    assert PathFilter(include, exclude).matches(path) == (included and not excluded)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("**/*.ogg", "a.ogg", True),
        ("**/*.ogg", "a/b/c.ogg", True),
        ("*.ogg", "a/b.ogg", False),
        ("*.ogg", "a.OGG", False),
        ("a/**", "a/b/c.ogg", True),
        ("a/**", "ab/c.ogg", False),
        ("a/", "a/b/c.ogg", True),
        ("a/**/b.ogg", "a/b.ogg", True),
        ("a/**/**/b.ogg", "a/x/b.ogg", True),
        ("**", ".hidden/a.ogg", False),
        (".hidden/*", ".hidden/a.ogg", True),
        ("[[]live].ogg", "[live].ogg", True),
        ("[live.ogg", "[live.ogg", True),
        ("[z-a]", "b", False),
        ("[!z-a]", "b", True),
        ("a*", "a\n", True),
    ],
)
def test_globs(pattern: str, path: str, matches: bool) -> None:
    assert PathFilter([pattern]).matches(path) is matches


@pytest.mark.parametrize("pattern", ["", "/a", "../a", "a/../b", "./a", "a//b"])
def test_globs_that_cannot_match(pattern: str) -> None:
    assert glob_problem(pattern)


def test_walks_only_where_files_can_be() -> None:
    wanted = PathFilter(["rock/**/*.ogg", "jazz/*/x.ogg", "top.ogg"], ["rock/live/**", "**/demos/"])
    assert wanted.descends("rock")
    assert wanted.descends("rock/studio")
    assert wanted.descends("jazz/a")
    for path in ("pop", "jazz/a/b", "rock/live", "rock/a/demos", "rock/.git", "rocks"):
        assert not wanted.descends(path), path


# --- folders ---------------------------------------------------------------------------------------


def test_a_row_a_file(music: Path, scanned: Scanned) -> None:
    make(music, "b/song.ogg", "a/song.ogg", "cover.jpg")
    os.utime(music / "a/song.ogg", ns=(1, 1_700_000_000_123_456_789))
    found = scanned()
    assert found.collections == ("m",)
    assert list(found.tracks.columns) == ["track_id", "collection", "uri", "size", "mtime_ns", "labels"]
    assert ids(found.tracks) == ["m/a/song.ogg", "m/b/song.ogg"]
    row = found.tracks.iloc[0]
    assert row["uri"] == str(music / "a/song.ogg")
    assert (row["collection"], row["size"], row["mtime_ns"]) == ("m", 1, 1_700_000_000_123_456_789)
    assert pd.isna(row["labels"])
    assert found.tracks["size"].dtype == found.tracks["mtime_ns"].dtype == np.int64
    assert list(found.problems.columns) == ["track_id", "collection", "uri", "reason"]
    assert len(found.problems) == 0


def test_an_empty_folder_has_the_same_columns(scanned: Scanned) -> None:
    found = scanned()
    assert len(found.tracks) == len(found.problems) == 0
    assert found.tracks["size"].dtype == np.int64
    assert found.tracks["track_id"].dtype == found.problems["track_id"].dtype == "str"


@pytest.mark.parametrize("ending", AUDIO_ENDINGS)
def test_every_audio_ending_by_default(music: Path, scanned: Scanned, ending: str) -> None:
    make(music, f"x/a.{ending}", f"x/b.{ending.upper()}", f"x/{ending}", f"x/c.{ending}.txt")
    assert ids(scanned().tracks) == [f"m/x/a.{ending}", f"m/x/b.{ending.upper()}"]


def test_include_and_exclude(music: Path, scanned: Scanned) -> None:
    make(music, "a.ogg", "x/b.ogg", "x/live/c.ogg", "x/d.mp3")
    assert ids(scanned(include=["**/*.ogg"], exclude=["**/live/**"]).tracks) == ["m/a.ogg", "m/x/b.ogg"]
    assert ids(scanned(include=["*.ogg", "x/*.mp3"]).tracks) == ["m/a.ogg", "m/x/d.mp3"]


def test_hidden_names_only_when_named(music: Path, scanned: Scanned) -> None:
    make(music, ".a.ogg", ".trash/b.ogg", "c.ogg", "x/.trash/d.ogg")
    assert ids(scanned().tracks) == ["m/c.ogg"]
    assert ids(scanned(include=["**/*.ogg"]).tracks) == ["m/c.ogg"]
    assert ids(scanned(include=["**/.trash/*.ogg"]).tracks) == ["m/.trash/b.ogg", "m/x/.trash/d.ogg"]


@pytest.mark.parametrize(
    "name",
    [
        "with space.ogg",
        "a#b?c%20.ogg",
        "line\nbreak.ogg",
        "tab\tand\\backslash.ogg",
        "音楽/曲.ogg",
        "🎵.ogg",
        "-rf.ogg",
        "'quoted' \"twice\".ogg",
        "n" * 251 + ".ogg",
        "/".join(["d" * 200] * 15) + "/deep.ogg",
    ],
)
def test_names_are_kept(music: Path, scanned: Scanned, name: str) -> None:
    make(music, name)
    found = scanned()
    assert ids(found.tracks) == [f"m/{name}"]
    assert Path(found.tracks["uri"][0]).read_bytes() == b"x"


def test_composed_and_decomposed_names_differ(music: Path, scanned: Scanned) -> None:
    both = sorted(unicodedata.normalize(form, "café.ogg") for form in ("NFC", "NFD"))
    make(music, *both)
    if len(os.listdir(music)) < 2:
        pytest.skip("this file system takes the two forms for one name")
    assert ids(scanned().tracks) == [f"m/{name}" for name in both]


def test_undecodable_names_are_problems(music: Path, scanned: Scanned) -> None:
    try:
        (music / os.fsdecode(b"\xe9tude.ogg")).write_bytes(b"x")
        (music / os.fsdecode(b"alb\xff")).mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    make(music / os.fsdecode(b"alb\xff"), "a.ogg", "b.ogg")
    found = scanned()
    assert ids(found.tracks) == []
    assert reasons(found) == {
        "m/\\xe9tude.ogg": "the name is not valid UTF-8; rename the file",
        "m/alb\\xff/": "the folder's name is not valid UTF-8; rename it",
    }


def test_what_cannot_be_used_is_told(music: Path, scanned: Scanned) -> None:
    make(music, "empty.ogg", content=b"")
    make(music, "good.ogg")
    (music / "broken.ogg").symlink_to(music / "nowhere.ogg")
    (music / "album").symlink_to(music / "nowhere")
    (music / "notes.txt").symlink_to(music / "nowhere.txt")
    (music / "self.ogg").symlink_to(music / "self.ogg")
    os.mkfifo(music / "pipe.ogg")
    (music / "to-pipe.ogg").symlink_to(music / "pipe.ogg")
    os.mkfifo(music / "pipe.txt")
    (music / "folder.ogg").mkdir()
    found = scanned()
    assert ids(found.tracks) == ["m/good.ogg"]
    assert reasons(found) == {
        "m/empty.ogg": "empty file",
        "m/broken.ogg": "broken symlink",
        "m/album": "broken symlink",
        "m/self.ogg": "symlink loop",
        "m/pipe.ogg": "not a regular file but a named pipe",
        "m/to-pipe.ogg": "not a regular file but a named pipe",
    }
    assert set(found.problems["collection"]) == {"m"}
    assert found.problems["uri"][found.problems["track_id"] == "m/empty.ogg"].item() == str(
        music / "empty.ogg"
    )


def test_sockets_are_problems(music: Path, scanned: Scanned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(music)  # a socket's path may have 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.ogg")
        assert reasons(scanned()) == {"m/s.ogg": "not a regular file but a socket"}


def test_links_out_of_the_tree_are_followed(tmp_path: Path, music: Path, scanned: Scanned) -> None:
    make(tmp_path / "elsewhere", "one.ogg", "album/two.ogg", content=b"four")
    (music / "one.ogg").symlink_to(tmp_path / "elsewhere/one.ogg")
    (music / "linked").symlink_to(tmp_path / "elsewhere/album")
    found = scanned()
    assert ids(found.tracks) == ["m/linked/two.ogg", "m/one.ogg"]
    assert list(found.tracks["size"]) == [4, 4]
    assert list(found.tracks["uri"]) == [str(music / "linked/two.ogg"), str(music / "one.ogg")]


def test_loops_end(tmp_path: Path, music: Path, scanned: Scanned) -> None:
    make(music, "a/b/song.ogg")
    (music / "a/b/up").symlink_to(music / "a")
    (music / "a/here").symlink_to(".")
    make(tmp_path / "other", "x.ogg")
    (tmp_path / "other/back").symlink_to(music)
    (music / "other").symlink_to(tmp_path / "other")
    found = scanned()
    assert ids(found.tracks) == ["m/a/b/song.ogg", "m/other/x.ogg"]
    assert set(reasons(found)) == {"m/a/b/up", "m/a/here"}
    assert all(reason.startswith("symlink loop") for reason in reasons(found).values())


def test_real_folders_come_before_links_to_them(music: Path, scanned: Scanned) -> None:
    make(music, "z/real/song.ogg")
    (music / "a-link").symlink_to(music / "z/real")
    found = scanned()
    assert ids(found.tracks) == ["m/z/real/song.ogg"]
    assert len(found.problems) == 0


def test_files_that_vanish_are_left_out(
    music: Path, scanned: Scanned, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(music, "a.ogg", "b.ogg")
    real = os.scandir

    class Vanishing:
        """A listing from before one of its files was deleted."""

        def __init__(self, path: str) -> None:
            with real(path) as entries:
                self.entries = list(entries)

        def __enter__(self) -> list[os.DirEntry[str]]:
            (music / "a.ogg").unlink(missing_ok=True)
            return self.entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Vanishing)
    found = scanned()
    assert ids(found.tracks) == ["m/b.ogg"]
    assert len(found.problems) == 0


def test_folders_that_cannot_be_listed_are_told(
    music: Path, scanned: Scanned, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(music, "good/a.ogg", "locked/b.ogg")
    real = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = scanned()
    assert ids(found.tracks) == ["m/good/a.ogg"]
    assert reasons(found) == {"m/locked/": "folder cannot be listed: Permission denied"}


@needs_permissions
def test_permissions(music: Path, scanned: Scanned) -> None:
    make(music, "good/a.ogg", "locked/b.ogg")
    (music / "locked").chmod(0)
    try:
        assert reasons(scanned()) == {"m/locked/": "folder cannot be listed: Permission denied"}
    finally:
        (music / "locked").chmod(0o700)


def test_missing_folder_is_no_empty_collection(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, {"m": {"path": "nowhere"}})
    with pytest.raises(CatalogError) as caught:
        scan(catalog)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'catalog.yaml'}:1: collections.m.path: there is no folder")
    assert str(tmp_path / "nowhere") in message
    assert "Mount it" in message
    make(tmp_path, "file")
    with pytest.raises(CatalogError, match=r"collections\.m\.path: expected a folder, got the file"):
        scan(catalog_of(tmp_path, {"m": {"path": "file"}}))


def test_only_some_collections(tmp_path: Path, music: Path) -> None:
    make(music, "x/a.ogg")
    catalog = catalog_of(
        tmp_path, {"all": {"path": "music"}, "part": {"path": "music/x"}, "gone": {"path": "nowhere"}}
    )
    found = scan(catalog, only=["part", "all", "part"])
    assert ids(found.tracks) == ["all/x/a.ogg", "part/a.ogg"]
    assert found.tracks["uri"].nunique() == 1
    assert found.collections == ("part", "all")
    with pytest.raises(UnknownNameError, match=r"no collection 'prt'. Did you mean 'part'\?"):
        scan(catalog, only=["prt"])


def test_batches_join(music: Path, scanned: Scanned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.found._BATCH", 3)
    make(music, *(f"{i % 3}/{i}.ogg" for i in range(10)))
    assert ids(scanned().tracks) == sorted(f"m/{i % 3}/{i}.ogg" for i in range(10))


# --- manifests -------------------------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path: Path) -> Scanned:
    """A scan of a manifest, given as CSV text or as a frame, as the collection `t`."""

    def listed(content: str | bytes | pd.DataFrame, **keys: object) -> Scan:
        if isinstance(content, pd.DataFrame):
            file = tmp_path / "tracks.parquet"
            content.to_parquet(file, index=False)
        else:
            file = tmp_path / "tracks.csv"
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        return scan(catalog_of(tmp_path, {"t": {"manifest": file.name, **keys}}))

    return listed


def labels(found: Scan) -> list[object]:
    return [json.loads(value) if isinstance(value, str) else None for value in found.tracks["labels"]]


def test_manifest_rows_and_labels(tmp_path: Path, listed: Scanned) -> None:
    make(tmp_path, "a.ogg", "x/b, c.ogg", "d.ogg")
    found = listed(
        "uri,artist,bpm,live,year,note\n"
        'a.ogg,Björk,120.5,true,1997,"two\nlines"\n'
        '"x/b, c.ogg",NA,,false,,\n'
        "d.ogg,,,,,\n"
    )
    assert ids(found.tracks) == ["t/a.ogg", "t/d.ogg", "t/x/b, c.ogg"]
    assert labels(found) == [
        {"artist": "Björk", "bpm": 120.5, "live": True, "year": 1997, "note": "two\nlines"},
        None,
        {"artist": "NA", "live": False},
    ]
    assert found.tracks["uri"][0] == str(tmp_path / "a.ogg")


def test_manifest_without_labels(tmp_path: Path, listed: Scanned) -> None:
    make(tmp_path, "a.ogg", "007")
    found = listed("uri\na.ogg\n007\n")
    assert ids(found.tracks) == ["t/007", "t/a.ogg"]
    assert labels(found) == [None, None]
    assert len(listed("uri,x\n").tracks) == 0


def test_types_are_inferred_from_all_rows(tmp_path: Path, listed: Scanned) -> None:
    make(tmp_path, *(f"{i}.ogg" for i in range(3)))
    filler = "x" * (3 << 20)  # more than a block of Arrow's reader
    found = listed(f"uri,id,text\n0.ogg,1,{filler}\n1.ogg,2,\n2.ogg,three,\n")
    assert [row["id"] for row in labels(found)] == ["1", "2", "three"]  # type: ignore[index]


def test_parquet_manifest(tmp_path: Path, listed: Scanned) -> None:
    make(tmp_path / "audio", "a.ogg", "b.ogg")
    frame = pd.DataFrame(
        {
            "uri": pd.Categorical(["a.ogg", "b.ogg"]),
            "tags": [["rock", "live"], None],
            "bpm": [np.nan, 90.0],
            "year": pd.array([1999, None], dtype="Int64"),
            "price": [Decimal("1.50"), Decimal("2")],
            "released": [date(2020, 1, 31), None],
        }
    )
    found = listed(frame, root="audio")
    assert ids(found.tracks) == ["t/a.ogg", "t/b.ogg"]
    assert labels(found) == [
        {"tags": ["rock", "live"], "year": 1999, "price": 1.5, "released": "2020-01-31"},
        {"bpm": 90.0, "price": 2},
    ]


def test_manifest_paths(tmp_path: Path, listed: Scanned) -> None:
    root, outside = tmp_path / "audio", tmp_path / "out side"
    make(root, "a.ogg", "x/b.ogg", "c d.ogg", "e#.ogg")
    make(outside, "f.ogg")
    found = listed(
        f"uri\n./x/../a.ogg\n{root}/x/b.ogg\nfile://{root}/c%20d.ogg\nfile://localhost{root}/e#.ogg\n"
        f"{outside}/f.ogg\n",
        root="audio",
    )
    assert ids(found.tracks) == sorted(["t/a.ogg", "t/x/b.ogg", "t/c d.ogg", "t/e#.ogg", f"t{outside}/f.ogg"])
    assert set(found.tracks["uri"]) >= {str(root / "c d.ogg"), str(outside / "f.ogg")}
    assert len(found.problems) == 0


def test_manifest_rows_that_cannot_be_used(tmp_path: Path, listed: Scanned) -> None:
    make(tmp_path, "good.ogg")
    make(tmp_path, "empty.ogg", content=b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.ogg").symlink_to(tmp_path / "nowhere.ogg")
    os.mkfifo(tmp_path / "pipe.ogg")
    rows = ["good.ogg", "missing.ogg", "good.ogg/x", "empty.ogg", "folder", "broken.ogg", "pipe.ogg"]
    found = listed("\n".join(["uri", *rows]) + "\n")
    assert ids(found.tracks) == ["t/good.ogg"]
    assert reasons(found) == {
        "t/missing.ogg": "the manifest names it, but there is no such file",
        "t/good.ogg/x": "the manifest names it, but there is no such file",
        "t/empty.ogg": "empty file",
        "t/folder": "not a regular file but a folder",
        "t/broken.ogg": "broken symlink",
        "t/pipe.ogg": "not a regular file but a named pipe",
    }


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("url,x\na,1\n", "tracks.csv: there is no column 'uri'. Did you mean 'url'?"),
        ("URI\na\n", "there is no column 'uri'. Rename the column 'URI'."),
        ("artist,title\na,b\n", "there is no column 'uri'. It has: artist, title."),
        ("uri,x,x\na,1,2\n", "the column 'x' is there 2 times."),
        (",uri\n0,a\n", "column 1 has no name. Name it, or write without an index."),
        ("uri,x\na,1\n,2\n", "tracks.csv: row 3: uri: expected a path, got nothing."),
        ("uri,x\na,1\n' ',2\n".replace("'", '"'), "row 3: uri: expected a path, got nothing."),
        ("uri\na.ogg\nb.ogg\n./a.ogg\n", "tracks.csv: row 4: uri: './a.ogg' is there already, in row 2."),
        ("uri\n../a.ogg\n", "tracks.csv: row 2: uri: '../a.ogg' leads out of "),
        ("uri\nx/../../a.ogg\n", "row 2: uri: 'x/../../a.ogg' leads out of "),
        ("uri\n.\n", "row 2: uri: '.' leads out of "),
        ("uri\nfile://host/a.ogg\n", "row 2: uri: expected file:///path, got 'file://host/a.ogg'."),
        ("uri\nfile:///a%00b\n", "row 2: uri: a path cannot hold a NUL character."),
        (
            "uri,x\na,1\nb,1,2\n",
            "tracks.csv: cannot be read: CSV parse error: Row #3: Expected 2 columns, got 3",
        ),
        ("", "tracks.csv: cannot be read: "),
        (b"uri,artist\na.ogg,Bj\xf6rk\n", "the column 'artist' is not valid UTF-8. Save the file as UTF-8."),
        (b"uri\nBj\xf6rk.ogg\n", "tracks.csv: "),
        (pd.DataFrame({"uri": [1, 2]}), "tracks.parquet: the column 'uri' must hold text, got int64."),
        (pd.DataFrame({"uri": ["a", None]}), "tracks.parquet: row 2: uri: expected a path, got nothing."),
    ],
)
def test_wrong_manifests(listed: Scanned, content: str | bytes | pd.DataFrame, told: str) -> None:
    with pytest.raises(CatalogError) as caught:
        listed(content)
    assert "catalog.yaml:1: collections.t.manifest: " in str(caught.value)
    assert told in str(caught.value)


def test_many_wrong_rows_are_told_in_part(listed: Scanned) -> None:
    with pytest.raises(CatalogError) as caught:
        listed("uri\n" + "../x\n" * 50)
    lines = str(caught.value).split("\n")
    assert len(lines) == 11
    assert lines[-1] == "and 40 more."


@pytest.mark.parametrize("content", [b"", b"PAR1 this is no Parquet file"])
def test_damaged_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tracks.parquet").write_bytes(content)
    with pytest.raises(CatalogError, match=r"tracks\.parquet: cannot be read: .*Parquet"):
        scan(catalog_of(tmp_path, {"t": {"manifest": "tracks.parquet"}}))


def test_missing_manifest_and_root(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"collections\.t\.manifest: .*tracks\.csv: there is no such file"):
        scan(catalog_of(tmp_path, {"t": {"manifest": "tracks.csv"}}))
    with pytest.raises(CatalogError, match=r"collections\.t\.root: there is no folder"):
        scan(catalog_of(tmp_path, {"t": {"manifest": "tracks.csv", "root": "nowhere"}}))


@pytest.mark.parametrize("uri", ["link/a.ogg", "a.ogg", "link/../link/a.ogg"])
def test_symlinks_do_not_lead_out_of_the_root(tmp_path: Path, listed: Scanned, uri: str) -> None:
    make(tmp_path / "outside", "a.ogg")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "a.ogg").symlink_to(tmp_path / "outside/a.ogg")
    with pytest.raises(CatalogError, match=r"row 2: .* through a symlink. Give the absolute path"):
        listed(f"uri\n{uri}\n", root="root")
    found = listed(f"uri\n{root}/{uri}\n", root="root")  # given explicitly
    assert len(found.tracks) == 1


def test_symlinks_within_the_root_are_followed(tmp_path: Path, listed: Scanned) -> None:
    make(tmp_path / "real", ".annex/a", "b.ogg")
    (tmp_path / "real/a.ogg").symlink_to(".annex/a")
    (tmp_path / "root").symlink_to("real")
    assert ids(listed("uri\na.ogg\nb.ogg\n", root="root").tracks) == ["t/a.ogg", "t/b.ogg"]


@given(st.lists(st.sampled_from(["a", "..", ".", "b.ogg", ""]), min_size=1, max_size=6))
def test_no_relative_uri_leaves_the_root(parts: list[str]) -> None:
    from pipeline.manifests import _Paths

    uri = "/".join(parts)
    if uri.startswith("/"):
        return
    try:
        path, _ = _Paths("/nowhere/root").located(uri)
    except ValueError:
        return
    assert os.path.normpath(f"/nowhere/root/{path}").startswith("/nowhere/root/")


# --- what was there ----------------------------------------------------------------------------------


def absent(catalog: Catalog, *uris: object) -> list[str]:
    """Reasons for tracks of the collection `m`, named by paths below its first folder."""
    rows = [(f"m/{path}", "m", str(uri), True) for path, uri in uris]
    columns = ["track_id", "collection", "uri", "has_features"]
    return absence_reasons(pd.DataFrame(rows, columns=columns), catalog)


def test_why_a_file_is_no_longer_found(tmp_path: Path, music: Path) -> None:
    make(music, "kept.ogg", "live/b.ogg")
    old = [
        (name, music / name) for name in ("lost.ogg", "kept.ogg", "live/b.ogg", "live/lost.ogg", "old.xyz")
    ]
    catalog = catalog_of(tmp_path, {"m": {"path": "music", "exclude": ["live/**"]}})
    left_out = "include or exclude leaves it out now"
    assert absent(catalog, *old) == [
        "the file is gone", "no longer in the collection", left_out, left_out, left_out
    ]  # fmt: skip
    other = catalog_of(tmp_path, {"m": {"path": "elsewhere"}})
    assert absent(other, *old[:2]) == ["the file is gone", "no longer in the collection"]
    gone = {"track_id": ["m/lost.ogg"] * 2, "collection": ["m"] * 2, "uri": ["/lost.ogg"] * 2}
    assert absence_reasons(pd.DataFrame({**gone, "has_features": [True, False]}), other, {"m": 1}) == [
        "the file is gone, like all of m",
        "the file is gone, like all of m (it had failed)",
    ]
    bucket = catalog_of(tmp_path, {"m": {"path": "s3://one/music"}})
    places = [
        ("a.ogg", "s3://one/music/a.ogg"),
        ("a.ogg", "s3://other/a.ogg"),
        ("a.txt", "s3://one/music/a.txt"),
    ]
    assert absent(bucket, *places) == ["the file is gone", "no longer in the collection", left_out]
    listed = catalog_of(tmp_path, {"m": {"manifest": "songs.csv", "root": "music"}})
    assert set(absent(listed, *old)) == {"no longer in the manifest"}


def test_a_row_that_left_the_manifest_is_not_called_a_file_that_is_gone(empty_project: Any) -> None:
    for seed, name in enumerate("abc"):
        empty_project.add_song(f"{name}.wav", seconds=0.5, seed=seed)
    manifest = empty_project.folder / "songs.csv"
    manifest.write_text("uri\nmusic/a.wav\nmusic/b.wav\n")
    empty_project.write_catalog("audio: {kind: audio}", tagged="x", demo="./music")
    text = empty_project.catalog.read_text().replace("{path: x}", "{manifest: songs.csv}")
    empty_project.catalog.write_text(text)
    empty_project.extract()
    manifest.write_text("uri\nmusic/b.wav\n")
    empty_project.catalog.write_text(text.replace("./music", "./music, exclude: [c.*]"))
    (empty_project.music / "a.wav").rename(empty_project.folder / "a.wav")
    assert empty_project.plan() == {
        "tagged/music/a.wav": ("mark gone", "no longer in the manifest"),
        "demo/a.wav": ("mark gone", "the file is gone"),
        "demo/c.wav": ("mark gone", "include or exclude leaves it out now"),
    }
    manifest.write_text("uri\n")
    empty_project.catalog.write_text(text.replace("./music", "./music, include: [d.*]"))
    unlisted, unmatched = (
        ("mark gone", "no longer in the manifest, like all of tagged"),
        ("mark gone", "include or exclude leaves it out now, like all of demo"),
    )
    assert empty_project.plan() == {
        **{f"tagged/music/{name}.wav": unlisted for name in "ab"},
        **{f"demo/{name}.wav": unmatched for name in "abc"},
    }
    empty_project.extract()
    assert empty_project.plan() == {}
    manifest.write_text("uri\nmusic/b.wav\n")
    assert empty_project.plan() == {"tagged/music/b.wav": ("back", "back in its collection")}
