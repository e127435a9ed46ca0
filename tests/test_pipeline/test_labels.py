"""Labels from tables: matched, merged, checked; they outlive whatever happens to the files."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from features.framing import Grid
from pipeline import FeatureStore
from pipeline.errors import CatalogError, UnknownNameError
from pipeline.label_tables import label_table
from pipeline.labels import LabelReport, add_labels, labels_table, remove_labels
from pipeline.store.index import Index
from pipeline.store.records import TrackRow, track_rows

AUDIO = "audio: {kind: audio}"
HASHES = {"a": hashlib.sha256(b"a").hexdigest(), "b": hashlib.sha256(b"b").hexdigest()}


def indexed(folder: Path, *tracks: TrackRow) -> Path:
    """A store whose index has some tracks, and no parts."""
    index = Index.create(folder, Grid())
    index.commit(added=tracks, provenance={"command": "test"})
    return folder


def row(track_id: str, **columns: Any) -> TrackRow:
    collection, _, path = track_id.partition("/")
    known = {
        "uri": f"/music/{path}",
        "status": "ok",
        "part": "p",
        "row_start": 0,
        "n_chunks": 1,
        "n_samples": 12_000,
    }
    return TrackRow(
        track_id=track_id, collection=collection, size=1, mtime_ns=2**60 + 1, **{**known, **columns}
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return indexed(
        tmp_path / "store",
        row("demo/a.wav", content_hash=HASHES["a"], labels='{"genre": "rock", "from": "csv"}'),
        row("demo/sub/b.wav", content_hash=HASHES["b"], file_tags='{"genre": "noise", "title": "B"}'),
        row("other/a.wav", uri="/elsewhere/a.wav", content_hash=HASHES["a"]),
        row("demo/broken.wav", status="failed", stage="decode", reason="no audio", part=None),
    )


def added(store: Path, snapshot: int | None = None) -> dict[str, dict[str, Any]]:
    """Added labels by track, straight from the table."""
    rows = Index(store, snapshot).tracks(["track_id", "added_labels"])
    texts = zip(rows["track_id"], rows["added_labels"], strict=True)
    return {name: json.loads(text) for name, text in texts if isinstance(text, str)}


def found(report: LabelReport, words: str) -> tuple[int, tuple[str, ...]]:
    return next(((f.count, f.examples) for f in report.findings if words in f.what), (0, ()))


def test_a_csv_is_joined_and_merged_cell_by_cell(store: Path, tmp_path: Path) -> None:
    csv = tmp_path / "tags.csv"
    csv.write_text(
        "\ufefftrack_id,genre,year,tempo,live,made\n"
        "demo/a.wav,folk,1999,120.5,true,2020-01-02\n"
        "demo/sub/b.wav,,2001,,,\n"
        "demo/broken.wav,pop,,,,\n"
    )
    report = add_labels(store, csv)
    assert (report.by, report.rows, report.tracks, report.changed, report.snapshot) == (
        "track_id",
        3,
        3,
        3,
        2,
    )
    assert report.labels == ("genre", "year", "tempo", "live", "made")
    assert added(store) == {
        "demo/a.wav": {"genre": "folk", "year": 1999, "tempo": 120.5, "live": True, "made": "2020-01-02"},
        "demo/sub/b.wav": {"year": 2001},
        "demo/broken.wav": {"genre": "pop"},
    }
    assert found(report, "without any of these") == (1, ("other/a.wav",))
    assert report.kinds == {
        "genre": "text",
        "year": "number",
        "tempo": "number",
        "live": "true or false",
        "made": "text",
    }
    csv.write_text("track_id,genre,year\ndemo/a.wav,,2000\ndemo/sub/b.wav,jazz,\n")
    assert add_labels(store, csv).changed == 2
    assert added(store)["demo/a.wav"] == {
        "genre": "folk",
        "year": 2000,
        "tempo": 120.5,
        "live": True,
        "made": "2020-01-02",
    }
    assert added(store)["demo/sub/b.wav"] == {"year": 2001, "genre": "jazz"}
    # The past keeps what it had, and nothing else of the rows has changed.
    assert added(store, 1) == {}
    assert added(store, 2)["demo/a.wav"]["year"] == 1999
    first, last = (Index(store, number).tracks().drop(columns="added_labels") for number in (1, None))
    pd.testing.assert_frame_equal(*(t.sort_values("track_id", ignore_index=True) for t in (first, last)))


def test_added_labels_come_before_a_manifests_and_these_before_tags(store: Path) -> None:
    before = FeatureStore(store)
    assert dict(before.tracks["genre"].dropna()) == {"demo/a.wav": "rock", "demo/sub/b.wav": "noise"}
    add_labels(store, pd.DataFrame({"track_id": ["demo/a.wav", "demo/sub/b.wav"], "genre": ["folk", "jazz"]}))
    now = FeatureStore(store)
    assert dict(now.tracks["genre"].dropna()) == {"demo/a.wav": "folk", "demo/sub/b.wav": "jazz"}
    assert (now.tracks.loc["demo/a.wav", "from"], now.tracks.loc["demo/sub/b.wav", "title"]) == ("csv", "B")
    assert list(now.select(genre="folk").tracks.index) == ["demo/a.wav"]
    assert dict(now.at(1).tracks["genre"].dropna()) == dict(before.tracks["genre"].dropna())
    assert labels_table(now).to_dict(orient="list") == {
        "label": ["from", "genre", "genre", "genre", "title"],
        "source": ["manifest", "file tags", "manifest", "added", "file tags"],
        "tracks": [1, 1, 1, 2, 1],
        "distinct": [1, 1, 1, 2, 1],
        "example": ["csv", "noise", "rock", "folk", "B"],
        "column": ["from", "genre", "genre", "genre", "title"],
    }
    assert list(labels_table(now.select(collection="other"))["label"]) == []


def test_nothing_new_makes_no_commit(store: Path) -> None:
    table = pd.DataFrame({"track_id": ["demo/a.wav"], "n": [1], "x": [0.5], "flag": [True]})
    assert add_labels(store, table, dry_run=True).changed == 1
    assert Index(store).version == 1
    assert add_labels(store, table).snapshot == 2
    again = add_labels(store, table)
    assert (again.tracks, again.changed, again.snapshot) == (1, 0, None)
    assert Index(store).version == 2
    # Equal in Python, not in JSON.
    assert add_labels(store, table.assign(n=True)).changed == 1


def test_by_path_and_by_content(store: Path, tmp_path: Path) -> None:
    paths = ["./sub/b.wav", "/music/broken.wav", "file:///elsewhere/a.wav", "a.wav", "none.wav"]
    report = add_labels(store, pd.DataFrame({"path": paths, "n": range(5)}))
    assert added(store) == {"demo/sub/b.wav": {"n": 0}, "demo/broken.wav": {"n": 1}, "other/a.wav": {"n": 2}}
    assert found(report, "several collections") == (1, ("a.wav",))
    assert found(report, "unknown tracks") == (1, ("none.wav",))
    report = add_labels(store, pd.DataFrame({"content_hash": [HASHES["a"].upper()], "n": [7]}))
    assert (report.tracks, report.changed) == (2, 2)
    assert added(store)["demo/a.wav"] == added(store)["other/a.wav"] == {"n": 7}
    assert added(store)["demo/sub/b.wav"] == {"n": 0}


def test_types_of_parquet(store: Path, tmp_path: Path) -> None:
    names = ["demo/a.wav", "demo/sub/b.wav", "other/a.wav"]
    when = pd.to_datetime(["2020-01-02T03:04:05", None, "2021-01-01T00:00:00"])
    table = pa.table(
        {
            "track_id": pa.array(names).dictionary_encode(),
            "whole": pa.array([1.0, None, 3.0]),
            "real": pa.array([1.0, float("nan"), 2.5]),
            "infinite": pa.array([float("inf"), 1.5, None]),
            "tags": pa.array([["x", "y"], [], None]),
            "kind": pa.array(["u", "v", ""]).dictionary_encode(),
            "when": pa.Array.from_pandas(when),
            "big": pa.array([2**60, None, 1]),
        }
    )
    parquet.write_table(table, tmp_path / "tags.parquet")
    add_labels(store, tmp_path / "tags.parquet")
    assert added(store) == {
        names[0]: {
            "whole": 1,
            "real": 1.0,
            "tags": ["x", "y"],
            "kind": "u",
            "when": "2020-01-02T03:04:05",
            "big": 2**60,
        },
        names[1]: {"infinite": 1.5, "kind": "v"},
        names[2]: {"whole": 3, "real": 2.5, "when": "2021-01-01T00:00:00", "big": 1},
    }
    assert isinstance(added(store)[names[0]]["whole"], int)
    assert isinstance(added(store)[names[0]]["real"], float)
    assert FeatureStore(store).tracks.loc[names[0], "tags"] == ["x", "y"]


def test_what_does_not_fit_is_told(store: Path, tmp_path: Path) -> None:
    csv = tmp_path / "tags.csv"
    csv.write_text(
        "track_id,size,void,content_hash\n"
        "demo/a.wav,big,,x\n"
        "demo/a.wav,big,,x\n"
        "demo/sub/b.wav,,,\n"
        ",small,,\n"
        ",,,\n"
        "demo/none.wav,small,,\n"
    )
    with pytest.raises(CatalogError, match="track_id and content_hash could both"):
        add_labels(store, csv)
    report = add_labels(store, csv, by="track_id")
    assert (report.rows, report.tracks, report.changed, report.labels) == (6, 1, 1, ("size",))
    assert found(report, "repeat another") == (1, ("demo/a.wav",))
    assert found(report, "rows without any label") == (1, ("demo/sub/b.wav",))
    assert found(report, "rows without a track_id") == (1, ("row 5",))
    assert found(report, "empty rows") == (1, ("row 6",))
    assert found(report, "unknown tracks") == (1, ("demo/none.wav",))
    assert found(report, "without any value") == (1, ("void",))
    assert found(report, "name tracks too") == (1, ("content_hash",))
    assert found(report, "read back") == (1, ("size: label_size",))
    assert found(report, "without any of these labels")[0] == 2  # not the file that could not be used
    tracks = FeatureStore(store).tracks
    assert (tracks.loc["demo/a.wav", "label_size"], tracks.loc["demo/a.wav", "size"]) == ("big", 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("track_id,n\ndemo/a.wav,1\ndemo/a.wav,2\n", r"'demo/a.wav' has other labels in row 3 than in row 2"),
        ("track_id,n\nunknown,1\nunknown,2\ndemo/a.wav,1\n", "'unknown' has other labels"),
        ("path,n\n/elsewhere/a.wav,1\n/elsewhere/./a.wav,2\n", "has other labels in row 3"),
        (f"content_hash,n\n{HASHES['a']},1\n{HASHES['a'].upper()},2\n", "has other labels in row 3"),
        ("path,n\n/music/a.wav,1\nsub/b.wav,2\n/music/sub/b.wav,3\n", "row 4 than in row 3"),
        (
            "track_id;mood\ndemo/a.wav;calm\n",
            "separated by commas, got the one column 'track_id;mood'. Write the file with a comma instead of ';'",
        ),
        ("track_id\tmood\ndemo/a.wav\tcalm\n", "got the one column"),
        ("track_id,n\na.wav,1\n", r"none of its rows names .* such as 'demo/a.wav', got 'a.wav'"),
        ("trackid,n\nx,1\n", "Did you mean 'track_id'"),
        ("name,n\nx,1\n", "It has: name, n"),
        ("track_id\ndemo/a.wav\n", "no column besides 'track_id'"),
        ("track_id,n,n\ndemo/a.wav,1,2\n", "'n' is there 2 times"),
        ("track_id,\ndemo/a.wav,1\n", "column 2 has no name"),
        ("track_id, \ndemo/a.wav,1\n", "column 2 has no name"),
        ("track_id,n\na.wav,1\nb.wav,1\n", r"none of its rows .* such as 'demo/a.wav', got 'a.wav'"),
        ("", "cannot be read"),
        ("track_id,n\ndemo/a.wav,1,2\n", "cannot be read"),
        ("track_id,n\ndemo/a.wav,caf\udce9\n", "not valid UTF-8"),
    ],
)
def test_tables_that_are_refused(store: Path, tmp_path: Path, text: str, words: str) -> None:
    csv = tmp_path / "tags.csv"
    csv.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CatalogError, match=words):
        add_labels(store, csv)
    assert (Index(store).version, added(store)) == (1, {})


def test_frames_that_are_refused(store: Path, tmp_path: Path) -> None:
    for table, words in (
        ({"track_id": ["demo/a.wav"], "n": [{"a": 1}]}, "holds struct"),
        ({"track_id": ["demo/a.wav"], "n": [b"x"]}, "holds binary"),
        (
            {"track_id": ["demo/a.wav", "x"], "n": ["x", 1]},
            r"text in row 0 \('x'\) and a number in row 1 \(1\)",
        ),
        ({"track_id": list("xyz"), "n": [None, ["x"], "y"]}, "a list of text in row 1 .* and text in row 2"),
        (
            {"track_id": list("xy"), "n": [["x"], [1]]},
            "a list of text in row 0 .* and a list of numbers in row 1",
        ),
        ({"track_id": list("xy"), "n": [True, 1]}, "true or false in row 0 .* and a number in row 1"),
        ({"track_id": ["x"], "n": [["x", 1]]}, "several types"),
        ({"track_id": [1], "n": [1]}, "must hold text"),
    ):
        with pytest.raises(CatalogError, match=words):
            add_labels(store, pd.DataFrame(table))
    with pytest.raises(CatalogError, match="no such file"):
        add_labels(store, tmp_path / "none.csv")
    with pytest.raises(CatalogError, match=r"not by 'uri'"):
        add_labels(store, pd.DataFrame({"uri": ["x"], "n": [1]}), by="uri")
    assert Index(store).version == 1


def test_a_frame_of_tracks_can_be_given_back(store: Path) -> None:
    tracks = FeatureStore(store).tracks
    tempo = pd.DataFrame({"tempo": np.arange(len(tracks)) / 2}, index=tracks.index)
    assert add_labels(store, tempo).changed == 3
    pd.testing.assert_series_equal(FeatureStore(store).tracks["tempo"], tempo["tempo"])


def test_a_label_is_of_one_type(store: Path, tmp_path: Path) -> None:
    """Over all tracks, as a column of `store.tracks` has them; a track that gets a new value does not count."""
    one, two, three = "demo/a.wav", "demo/sub/b.wav", "other/a.wav"
    add_labels(store, pd.DataFrame({"track_id": [one, two], "mood": ["calm", "wild"], "n": [1, 2]}))
    version = Index(store).version
    parquet.write_table(pa.table({"track_id": [two, three], "mood": [None, 7]}), tmp_path / "t.parquet")
    for table, words in (
        (tmp_path / "t.parquet", r"row 2: 'mood' is a number \(7\), but text of demo/a.wav \('calm', added\) and 1 "
         r"more. Give one type, or run `mirstore labels remove mood` first."),
        (pd.DataFrame({"track_id": [three], "mood": [["x"]]}), "row 0: 'mood' is a list of text"),
        (pd.DataFrame({"track_id": [one], "n": ["x"]}), r"but a number of demo/sub/b.wav \(2, added\)\."),
        (pd.DataFrame({"track_id": [one], "n": [True]}), "is true or false"),
        (pd.DataFrame({"track_id": [three], "genre": [7]}), r"\('rock', manifest\) and 1 .* or another name"),
        (pd.DataFrame({"track_id": [three], "title": [7]}), r"\('B', file tags\)"),
    ):  # fmt: skip
        for dry_run in (True, False):
            with pytest.raises(CatalogError, match=words):
                add_labels(store, table, dry_run=dry_run)
    assert Index(store).version == version
    # The last one of another type is replaced.
    add_labels(store, pd.DataFrame({"track_id": [one, two, three], "mood": [7, 8, 9], "n": [0.5, 1.5, 2.5]}))
    add_labels(store, pd.DataFrame({"track_id": [one, two], "genre": [[1], [2]]}))
    assert FeatureStore(store).tracks["mood"].tolist() == [7, 8, 9]
    remove_labels(store, ["mood"])
    add_labels(store, pd.DataFrame({"track_id": [three], "mood": ["sad"]}))


def test_what_looks_like_numbers_in_a_csv_is_text_where_the_label_is(store: Path, tmp_path: Path) -> None:
    csv = tmp_path / "tags.csv"
    csv.write_text("track_id,title,year\nother/a.wav,007,1999\ndemo/a.wav,NA,2000\n")
    report = add_labels(store, csv)
    assert found(report, "kept as text") == (1, ("title (text of demo/sub/b.wav: 'B')",))
    assert report.kinds == {"title": "text", "year": "number"}
    assert added(store) == {"other/a.wav": {"title": "007", "year": 1999}, "demo/a.wav": {"year": 2000}}
    csv.write_text("track_id,year\ndemo/sub/b.wav,1999?\n")
    with pytest.raises(CatalogError, match="row 2: 'year' is text"):
        add_labels(store, csv)


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (["120", "12O", "99.5"], "bpm: '12O' in row 3"),
        (["-1e3", ".5", "fast", "slow", "7."], "bpm: 'fast' in row 4"),
        (["1", "two"], None),
        (["one", "two", "3"], None),
        (["1", "2", "3"], None),
        (["", "", "x"], None),
    ],
)
def test_a_slip_that_makes_a_column_text_is_told(
    store: Path, tmp_path: Path, cells: list[str], told: str | None
) -> None:
    csv = tmp_path / "tags.csv"
    csv.write_text("track_id,bpm\n" + "".join(f"track {n},{cell}\n" for n, cell in enumerate(cells)))
    findings = [f.examples for f in label_table(csv).findings if "most of their values are numbers" in f.what]
    assert findings == ([(told,)] if told else [])


def test_what_is_no_table_is_told_by_its_name(store: Path, tmp_path: Path) -> None:
    for name in ("song.ogg", "tags.tsv", "tags"):
        (tmp_path / name).write_bytes(b"OggS")
        with pytest.raises(CatalogError, match=r"expected a table whose name ends in \.csv or \.parquet"):
            add_labels(store, tmp_path / name)


def test_removing(store: Path) -> None:
    add_labels(
        store,
        pd.DataFrame({"track_id": ["demo/a.wav", "other/a.wav"], "genre": ["folk", "x"], "n": [1, None]}),
    )
    report = remove_labels(store, ["genre"])
    assert (report.labels, report.tracks, report.snapshot) == (("genre",), 2, 3)
    assert added(store) == {"demo/a.wav": {"n": 1}}
    assert FeatureStore(store).tracks.loc["demo/a.wav", "genre"] == "rock"
    with pytest.raises(UnknownNameError, match="It comes from the manifest"):
        remove_labels(store, ["n", "genre"])
    with pytest.raises(UnknownNameError, match=r"file's own tags"):
        remove_labels(store, ["title"])
    remove_labels(store, ["n"])
    assert added(store) == {}
    with pytest.raises(UnknownNameError, match="no label 'n' was added"):
        remove_labels(store, ["n"])


@settings(max_examples=60)
@given(
    st.lists(st.one_of(st.none(), st.floats()), min_size=1, max_size=5),
    st.lists(st.text('ab,"\n ', max_size=4), min_size=5, max_size=5),
)
def test_cells_are_what_was_written(numbers: list[float | None], words: list[str]) -> None:
    """Against pandas: a finite number is kept as it is, all else is empty; text is kept but for the empty one."""
    table = pd.DataFrame(
        {
            "track_id": [f"t/{n}" for n in range(len(numbers))],
            "x": pd.array(numbers, dtype="float64"),
            "w": words[: len(numbers)],
        }
    )
    for labels, number, word in zip(label_table(table).labels, numbers, words, strict=False):
        assert labels.get("w", "") == word
        if number is None or not np.isfinite(number):
            assert "x" not in labels
        else:
            assert labels["x"] == number
        assert json.loads(json.dumps(labels, allow_nan=False)) == labels


def test_rows_of_the_index_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        row("demo/a.wav", peak=0.25, labels='{"a": 1}', source_rate=44_100),
        row(
            "demo/b.wav",
            status="failed",
            part=None,
            row_start=None,
            n_chunks=None,
            n_samples=None,
            stage="open",
        ),
    ]
    frame = Index(indexed(tmp_path / "store", *rows)).tracks().sort_values("track_id")
    assert track_rows(frame) == rows
    assert track_rows(frame.astype({"row_start": float}).iloc[::-1]) == rows[::-1]
    assert track_rows(frame.iloc[:0]) == []
    assert type(track_rows(frame)[0].mtime_ns) is int


def test_many_rows(tmp_path: Path) -> None:
    """Each track gets the row of its own name, however they are sorted."""
    n = 20_000
    store = indexed(tmp_path / "store", *(row(f"demo/{number:06}.wav") for number in range(n)))
    order = np.random.default_rng(0).permutation(n)
    table = pd.DataFrame({"path": [f"{number:06}.wav" for number in order], "number": order})
    report = add_labels(store, table)
    assert (report.tracks, report.changed, report.findings) == (n, n, ())
    tracks = FeatureStore(store).tracks
    assert (tracks["number"].to_numpy() == np.arange(n)).all()
    assert list(tracks.index[:2]) == ["demo/000000.wav", "demo/000001.wav"]


def test_labels_outlive_what_happens_to_the_files(empty_project: Any) -> None:
    names = ["a.wav", "b.wav", "c.wav", "d.wav"]
    for seed, name in enumerate(names):
        empty_project.add_song(name, seconds=1.0, seed=seed)
    manifest = empty_project.folder / "songs.csv"
    manifest.write_text("uri,genre\n" + "".join(f"music/{name},rock\n" for name in names))
    empty_project.write_catalog(AUDIO)
    text = empty_project.catalog.read_text()
    empty_project.catalog.write_text(text.replace("{path: ./music}", "{manifest: songs.csv}"))
    empty_project.extract()
    table = pd.DataFrame({"track_id": [f"demo/music/{name}" for name in names], "mood": list("wxyz")})
    add_labels(empty_project.catalog, table)
    labelled = empty_project.store.snapshot
    empty_project.add_song("a.wav", seconds=2.0, seed=9)  # changed
    shutil.move(empty_project.music / "b.wav", empty_project.music / "moved.wav")
    (empty_project.music / "c.wav").write_bytes(b"no audio at all, but not empty")
    (empty_project.music / "d.wav").unlink()
    manifest.write_text(
        manifest.read_text()
        .replace("b.wav", "moved.wav")
        .replace("rock", "pop")
        .replace("music/d.wav,pop\n", "")
    )
    report = empty_project.extract()
    assert (report.songs, report.moved, report.failures, report.gone) == (1, 1, 1, 1)
    store = empty_project.store
    expected = {
        "a.wav": ("w", "pop", "ok"),
        "moved.wav": ("x", "pop", "ok"),
        "c.wav": ("y", "pop", "failed"),
        "d.wav": ("z", "rock", "gone"),
    }
    for name, values in expected.items():
        assert tuple(store.tracks.loc[f"demo/music/{name}", ["mood", "genre", "status"]]) == values
    empty_project.add_song("c.wav", seconds=1.0, seed=2)
    empty_project.extract()
    assert tuple(empty_project.store.tracks.loc["demo/music/c.wav", ["mood", "status"]]) == ("y", "ok")
    past = empty_project.store.at(labelled).tracks
    assert (list(past["mood"]), set(past["genre"])) == (list("wxyz"), {"rock"})


def test_the_command(empty_project: Any) -> None:
    empty_project.add_song("a.wav", seconds=1.0)
    empty_project.write_catalog(AUDIO)
    empty_project.extract()
    csv = empty_project.folder / "tags.csv"
    csv.write_text("path,genre\na.wav,folk\nnone.wav,x\n")
    dry = empty_project.run("labels", "add", "tags.csv", "--dry-run")
    assert dry.returncode == 0
    assert dry.stdout.splitlines() == [
        "2 rows, by path: 1 track named, 1 would be changed",
        "labels: genre (text)",
        "rows of unknown tracks, by path: 1 (none.wav)",
        "Nothing was written: --dry-run.",
    ]
    report = empty_project.run_json("labels", "add", "tags.csv", "--by", "path")
    assert (report["tracks"], report["changed"], report["findings"][0]["examples"]) == (1, 1, ["none.wav"])
    assert "Nothing to do" in empty_project.run("labels", "add", "tags.csv").stdout
    about = empty_project.store.snapshots.iloc[0]
    assert about["command"] == "mirstore labels add tags.csv --by path --json"
    assert about["counts"] == {"updated": 1}
    listed = empty_project.run_json("labels", "list")["labels"]
    assert [(label["label"], label["source"], label["example"]) for label in listed] == [
        ("genre", "added", "folk")
    ]
    assert "folk" in empty_project.run("labels", "list").stdout
    assert (
        empty_project.run("labels", "list", "--snapshot", str(about["snapshot"] - 1)).stdout == "No labels.\n"
    )
    assert "removed from 1 track" in empty_project.run("labels", "remove", "genre").stdout
    csv.write_text("path,genre\na.wav,folk\na.wav,pop\n")
    refused = empty_project.run("labels", "add", "tags.csv")
    assert refused.returncode == 2
    assert refused.stderr == (
        "mirstore: tags.csv: 'a.wav' has other labels in row 3 than in row 2. Nothing was written; keep one of "
        "them.\n"
    )
    assert empty_project.run_json("labels", "list") == {"labels": []}
    csv.write_text("path,duration_s\na.wav,7\n")
    assert "duration_s: label_duration_s" in empty_project.run("labels", "add", "tags.csv").stdout
    assert empty_project.run("labels", "list").stdout.splitlines() == [
        "label       source  tracks  values  example  column of tracks",
        "duration_s  added        1       1  7        label_duration_s",
    ]
