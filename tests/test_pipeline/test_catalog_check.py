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
        "all": Extent(folder, 3, unusable=1),
        "some": Extent(folder, 2),
        "none": Extent(folder, 0),
        "listed": Extent(manifest, 1, unusable=1, remote=2),
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
            narrow={**LOGMEL, "n_mels": 8},
            tall={"kind": "mfcc", "from": "narrow", "n_mfcc": 9},
            taller={"kind": "mfcc", "from": "narrow", "n_mfcc": 10},
        )
    text = (tmp_path / "catalog.yaml").read_text().splitlines()
    told = str(caught.value).splitlines()
    expected = (
        ("away", "collections.away.path: there is no folder"),
        ("file", "collections.file.path: expected a folder, got the file"),
        ("unlisted", "collections.unlisted.manifest: "),
        ("wrong", "there is no column 'uri'"),
        ("twice", "row 3: uri: '../b.wav' leads out of"),
        (None, "row 4: uri: 'music/a.wav' is there already"),
        ("rootless", "collections.rootless.root: there is no folder"),
        ("far", "collections.far.root: there is no folder"),
        ("one", "nowhere.h5': No such file"),
        ("two", "folder.h5': Is a directory"),
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
    collections, features = done.stdout.split("\n\n")
    heading, *lines = collections.splitlines()
    assert heading.split() == ["collection", "place", "files"]
    assert [line.rstrip().split(maxsplit=2) for line in lines] == [
        ["demo", "./music", "3"],
        ["cloud", "s3://bucket/music", "not checked"],
        ["web", "./songs.csv", "1  1 unusable, 1 on other machines, not checked"],
    ]
    assert [line.split()[0] for line in features.splitlines()] == ["feature", "audio", "logmel", "mfcc"]
    found = empty_project.run_json("catalog", "check")
    assert [(its["collection"], its["files"]) for its in found["collections"]] == [
        ("demo", 3), ("cloud", None), ("web", 1)
    ]  # fmt: skip
    assert [row["feature"] for row in found["features"]] == ["audio", "logmel", "mfcc"]

    (empty_project.folder / "songs.csv").unlink()
    (empty_project.music).rename(empty_project.folder / "away")
    for arguments in (("catalog", "check"), ("catalog", "check", "--json")):
        done = empty_project.run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        first, second = done.stderr.splitlines()
        assert first.startswith("mirstore: catalog.yaml:5: collections.demo.path: there is no folder")
        assert second.startswith("mirstore: catalog.yaml:7: collections.web.manifest: ")
