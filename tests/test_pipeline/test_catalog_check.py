"""`mirstore catalog check`: is there what the catalog names?"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog import load_catalog
from pipeline.catalog_check import check
from pipeline.collections import Extent
from pipeline.errors import CatalogError

WAVS = ("a.wav", "sub/b.wav", "sub/c.wav")
AUDIO = {"kind": "audio"}
LOGMEL = {"kind": "log_mel", "from": "audio"}


def checked(folder: Path, collections: dict[str, Any], **features: Any) -> Any:
    """The check of a catalog with an audio feature and further ones."""
    content = {
        "version": 1,
        "store": "s",
        "collections": collections,
        "features": {"audio": AUDIO, **features},
    }
    path = folder / "catalog.yaml"
    path.write_text(json.dumps(content, indent=1))  # JSON is YAML, and each key has a line of its own
    return check(load_catalog(path))


def make(folder: Path) -> None:
    for name in WAVS:
        (folder / "music" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "music" / name).write_bytes(b"x")


def test_collections_are_counted_and_others_not_asked(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "music" / "empty.wav").touch()
    (tmp_path / "music" / "notes.txt").write_text("x")
    (tmp_path / "songs.csv").write_text(
        "uri\nmusic/a.wav\nmusic/nowhere.wav\ns3://bucket/one.ogg\nhttps://host.invalid/two.ogg\n"
    )
    found = checked(
        tmp_path,
        {
            "all": {"path": "music"},
            "some": {"path": "music", "include": ["sub/*"]},
            "none": {"path": "music", "include": ["*.ogg"]},
            "listed": {"manifest": "songs.csv"},
            "elsewhere": {"manifest": "songs.csv", "root": "https://host.invalid/music"},
            "cloud": {"path": "s3://bucket/music"},
            "web": {"manifest": "https://host.invalid/songs.csv?key=secret"},
        },
        mfcc={"kind": "mfcc", "from": "logmel"},
        logmel=LOGMEL,
    )
    folder, manifest = str(tmp_path / "music"), str(tmp_path / "songs.csv")
    assert found.collections == {
        "all": Extent(folder, 3, {"all/empty.wav": "empty file"}),
        "some": Extent(folder, 2),
        "none": Extent(folder, 0),
        "listed": Extent(
            manifest,
            1,
            {"listed/music/nowhere.wav": "the manifest names it, but there is no such file"},
            remote=2,
        ),
        "elsewhere": Extent(manifest, 0, remote=4),
        "cloud": Extent("s3://bucket/music", None),
        "web": Extent("https://host.invalid/songs.csv", None),
    }
    catalog = load_catalog(tmp_path / "catalog.yaml")
    assert list(found.features.items()) == list(catalog.resolved_features().items())


def test_all_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "wrong.csv").write_text("path\na.wav\n")
    (tmp_path / "twice.csv").write_text("uri\nmusic/a.wav\n../b.wav\nmusic/a.wav\n")
    (tmp_path / "folder.h5").mkdir()
    cnn = {"kind": "cnn", "from": "logmel", "weights": "./nowhere.h5"}
    with pytest.raises(CatalogError) as caught:
        checked(
            tmp_path,
            {
                "good": {"path": "music"},
                "away": {"path": "nowhere"},
                "file": {"path": "music/a.wav"},
                "unlisted": {"manifest": "nowhere.csv"},
                "wrong": {"manifest": "wrong.csv"},
                "twice": {"manifest": "twice.csv"},
                "rootless": {"manifest": "twice.csv", "root": "nowhere"},
                "far": {"manifest": "https://host.invalid/songs.csv", "root": "nowhere"},
            },
            logmel=LOGMEL,
            one=cnn,
            two={**cnn, "weights": "./folder.h5"},
            same=cnn,
            seedless={**cnn, "weights": "random:x"},
            text={**cnn, "weights": "./wrong.csv"},
            other={**cnn, "variant": "choi2016", "weights": "jamendo-fcn"},
            narrow={**LOGMEL, "n_mels": 8},
            tall={"kind": "mfcc", "from": "narrow", "n_mfcc": 9},
            taller={"kind": "mfcc", "from": "narrow", "n_mfcc": 10},
        )
    text = (tmp_path / "catalog.yaml").read_text().splitlines()
    told = str(caught.value).splitlines()
    expected = (
        ("away", "collections.away.path: there is no folder"),
        ("file", "a.wav. Name the folder that it is in, or list single files in a manifest."),
        ("unlisted", "collections.unlisted.manifest: "),
        ("wrong", "there is no column 'uri'"),
        ("twice", "row 3: uri: '../b.wav' leads out of"),
        (None, "row 4: uri: 'music/a.wav' is there already"),
        ("rootless", "collections.rootless.root: there is no folder"),
        ("far", "collections.far.root: there is no folder"),
        ("one", "nowhere.h5': No such file"),
        ("two", "folder.h5': Is a directory"),
        ("same", "nowhere.h5': No such file"),
        ("seedless", "features.seedless.weights: 'random:x' has no seed; expected random:<seed> "),
        ("text", "features.text.weights: wrong.csv has no known suffix; weights are .h5,"),
        (
            "other",
            "features.other.weights: 'jamendo-fcn' holds weights of the variant jamendo_fcn, not choi2016",
        ),
        ("tall", "features.tall.n_mfcc: must be at most the 8 bands"),
        ("taller", "features.taller.n_mfcc: must be at most the 8 bands"),
    )
    assert len(told) == len(expected)
    for line, (name, words) in zip(told, expected, strict=True):
        assert words in line
        if name is not None:  # the line is that of the key, within the entry
            number = int(line.removeprefix(f"{tmp_path / 'catalog.yaml'}:").partition(":")[0])
            assert text.index(f'  "{name}": {{') < number <= text.index(f'  "{name}": {{') + 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_told(tmp_path: Path) -> None:
    make(tmp_path)
    for name in ("songs.csv", "weights.safetensors"):
        (tmp_path / name).write_text("uri\n")
        (tmp_path / name).chmod(0)
    (tmp_path / "music").chmod(0)
    try:
        with pytest.raises(CatalogError) as caught:
            checked(
                tmp_path,
                {"one": {"path": "music"}, "two": {"manifest": "songs.csv"}},
                logmel=LOGMEL,
                cnn={"kind": "cnn", "from": "logmel", "weights": "./weights.safetensors"},
            )
        assert str(caught.value).count("ermission denied") == 3
    finally:
        (tmp_path / "music").chmod(0o700)


def test_the_command(empty_project: Any) -> None:
    make(empty_project.folder)
    text = empty_project.catalog.read_text()
    empty_project.catalog.write_text(
        text.replace(
            "features:", "  cloud: {path: 's3://bucket/music'}\n  web: {manifest: songs.csv}\nfeatures:"
        )
    )
    (empty_project.folder / "songs.csv").write_text("uri\nmusic/a.wav\nhttps://host.invalid/a.ogg\nx.wav\n")
    done = empty_project.run("catalog", "check")
    assert (done.returncode, done.stderr) == (0, "")
    collections, unusable, features = done.stdout.split("\n\n")
    heading, *lines = collections.splitlines()
    assert heading.split() == ["collection", "place", "files"]
    assert [line.rstrip().split(maxsplit=2) for line in lines] == [
        ["demo", "./music", "3"],
        ["cloud", "s3://bucket/music", "not checked"],
        ["web", "./songs.csv", "1  1 unusable, 1 on other machines, not checked"],
    ]
    assert [line.rstrip().split(maxsplit=1) for line in unusable.splitlines()] == [
        ["unusable", "reason"],
        ["web/x.wav", "the manifest names it, but there is no such file"],
    ]
    assert [line.split()[0] for line in features.splitlines()] == ["feature", "audio", "logmel", "mfcc"]
    found = empty_project.run_json("catalog", "check")
    assert [(its["collection"], its["files"]) for its in found["collections"]] == [
        ("demo", 3), ("cloud", None), ("web", 1)
    ]  # fmt: skip
    assert [(its["unusable"], its["problems"]) for its in found["collections"]] == [
        (0, []),
        (0, []),
        (1, [{"track_id": "web/x.wav", "reason": "the manifest names it, but there is no such file"}]),
    ]
    assert [row["feature"] for row in found["features"]] == ["audio", "logmel", "mfcc"]

    (empty_project.folder / "songs.csv").unlink()
    (empty_project.music).rename(empty_project.folder / "away")
    for arguments in (("catalog", "check"), ("catalog", "check", "--json")):
        done = empty_project.run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        first, second = done.stderr.splitlines()
        assert first.startswith("mirstore: catalog.yaml:5: collections.demo.path: there is no folder")
        assert second.startswith("mirstore: catalog.yaml:7: collections.web.manifest: ")


def test_what_cannot_be_used_is_named_and_nothing_at_all_is_remarked(empty_project: Any) -> None:
    make(empty_project.folder)
    for number in range(7):
        (empty_project.music / f"{number}.wav").touch()
    (empty_project.folder / "empty").mkdir()
    text = empty_project.write_catalog(demo="./music", none="./empty").read_text()
    empty_project.catalog.write_text(
        text.replace("features:", "  left: {path: ./music, include: ['*.xyz']}\nfeatures:")
    )
    done = empty_project.run("catalog", "check")
    assert (done.returncode, done.stderr) == (0, "")
    collections, unusable, _ = done.stdout.split("\n\n")
    assert [line.split(maxsplit=3)[2:] for line in map(str.rstrip, collections.splitlines()[1:])] == [
        ["3", "7 unusable"],
        ["0", "no file to extract"],
        ["0", "no file to extract"],
    ]
    _, *named, last = map(str.rstrip, unusable.splitlines())
    assert [line.split(maxsplit=1) for line in named] == [[f"demo/{n}.wav", "empty file"] for n in range(5)]
    assert last == "and 2 more; `--json` lists all."
    [its, *_] = empty_project.run_json("catalog", "check")["collections"]
    assert [problem["track_id"] for problem in its["problems"]] == [f"demo/{n}.wav" for n in range(7)]


def test_check_plan_and_extract_refuse_alike(empty_project: Any) -> None:
    """And before a store is made, or workers start."""
    empty_project.add_song("a.wav")
    commands = (("catalog", "check"), ("extract", "--dry-run"), ("extract", "--workers", "1"))
    cnn = "embedding: {kind: cnn, from: logmel, weights: %s}"
    for weights, words in (("'random:x'", "has no seed"), ("./catalog.yaml", "no known suffix")):
        logmel = "logmel: {kind: log_mel, from: audio}"
        text = empty_project.write_catalog("audio: {kind: audio}", logmel, cnn % weights).read_text()
        empty_project.catalog.write_text(text.replace("frames_per_chunk: 64", "frames_per_chunk: 1366"))
        for arguments in commands:
            done = empty_project.run(*arguments)
            assert (done.returncode, done.stdout) == (2, "")
            [line] = done.stderr.splitlines()
            assert line.startswith("mirstore: catalog.yaml:9: features.embedding.weights: ")
            assert words in line
            assert not empty_project.store_folder.exists()
    empty_project.write_catalog("audio: {kind: audio}")
    empty_project.extract()
    snapshot = empty_project.store.snapshot
    empty_project.write_catalog("audio: {kind: audio, sample_rate: 16000}")
    for arguments in commands:
        done = empty_project.run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        [line] = done.stderr.splitlines()
        assert ("mirstore: catalog.yaml:2: store: " in line) is (arguments == commands[0])
        assert "store was made with sample_rate 12000 (catalog: 16000)" in line
    empty_project.write_catalog("audio: {kind: audio}")
    assert empty_project.store.snapshot == snapshot


def test_weights_that_cannot_be_had_stop_before_a_store_is_made(
    empty_project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from features.downloads import PUBLISHED, PublishedWeights

    entry = PublishedWeights((tmp_path / "away.h5").as_uri(), "0" * 64, "none.h5", "thesis", "none")
    monkeypatch.setitem(PUBLISHED, "none", entry)
    monkeypatch.setenv("MIRSTORE_CACHE", str(tmp_path / "cache"))
    features = ("audio: {kind: audio}", "logmel: {kind: log_mel, from: audio}")
    cnn = "embedding: {kind: cnn, from: logmel, weights: none}"
    text = empty_project.write_catalog(*features, cnn).read_text()
    empty_project.catalog.write_text(text.replace("frames_per_chunk: 64", "frames_per_chunk: 1366"))
    assert empty_project.run("catalog", "check").returncode == 0
    empty_project.add_song("a.wav", seconds=1.0)
    done = empty_project.run("extract", "--workers", "1")
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("mirstore: Could not download ")
    assert f"put it at {tmp_path / 'cache' / 'none.h5'}" in line
    assert not empty_project.store_folder.exists()
    # A store that needs none of them yet is extracted to; then only what does need them is refused.
    done = empty_project.run("extract", "--workers", "1", "--feature", "logmel")
    assert done.returncode == 0, done.stderr
    snapshot = empty_project.store.snapshot
    done = empty_project.run("extract", "--workers", "1")
    assert done.returncode == 2
    assert "Starting workers" not in done.stderr
    assert empty_project.store.snapshot == snapshot
