"""Stores of every format that was ever written stay readable, and can be written on."""

import importlib.util
import json
import shutil
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline import FeatureStore, extract
from pipeline.errors import StoreFormatError
from pipeline.store.format_file import FORMAT
from pipeline.store.index import Index
from pipeline.store.location import FORMAT_FILE
from pipeline.store.removal import Pruned, prune
from pipeline.store.verification import verify

STORES = Path(__file__).parents[1] / "stores"
NAMES = sorted(path.name.removesuffix(".tar.gz") for path in STORES.glob("*.tar.gz"))


def unpack(archive: Path, folder: Path) -> None:
    # Python before 3.11.4 has no filters, from 3.12 on it wants one.
    options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    shutil.unpack_archive(archive, folder, **options)


@pytest.fixture(params=NAMES)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A store as an old mirstore left it, and what that one read in it."""
    unpack(STORES / f"{request.param}.tar.gz", tmp_path)
    return tmp_path / "store", json.loads((STORES / f"{request.param}.json").read_text())


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """The script that made them."""
    spec = importlib.util.spec_from_file_location("make_store", STORES / "make_store.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_format_is_kept() -> None:
    assert NAMES == [f"format{number}" for number in range(1, FORMAT + 1)]


def test_reading(old: Any, maker: ModuleType) -> None:
    store, expected = old
    assert maker.contents(store) == expected
    assert verify(store).is_sound
    opened = FeatureStore(store)
    assert opened.tracks.loc["tagged/music/b.flac", "genre"] == "folk"
    assert list(opened.failures.index) == ["demo/broken.wav"]
    assert len(opened.snapshots) >= 3
    first = next(n for n in range(opened.snapshot) if len(opened.at(n).tracks))
    assert list(opened.at(first)) == ["audio", "logmel"]


def test_reading_changes_nothing(old: Any, maker: ModuleType) -> None:
    store, _ = old
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    maker.contents(store)
    verify(store)
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_writing_brings_the_format_up_to_date(old: Any, maker: ModuleType) -> None:
    store, expected = old
    snapshot = FeatureStore(store).snapshot
    assert prune(store) == Pruned(("demo/gone.wav",), ())
    assert json.loads((store / FORMAT_FILE).read_text())["format"] == FORMAT
    gone = expected.pop("demo/gone.wav")
    assert maker.contents(store) == expected
    past = FeatureStore(store).at(snapshot)
    assert past.tracks.loc["demo/gone.wav", "status"] == gone["status"]
    assert verify(store).is_sound
    assert Index(store).tracks()["added_labels"].isna().all()


def test_new_features_come_from_the_old_cache(old: Any, maker: ModuleType, scheduler: str) -> None:
    """No audio file is there any more."""
    store, expected = old
    folder = store.parent
    (folder / "music").mkdir()
    (folder / "tagged.csv").write_text("uri\n")
    (folder / "catalog.yaml").write_text(
        maker.CATALOG + maker.MFCC + "  wide: {kind: log_mel, from: audio, n_mels: 24}\n"
    )
    report = extract(folder / "catalog.yaml", scheduler=scheduler)
    assert (report.songs, report.computed) == (0, len(expected))
    opened = FeatureStore(folder / "catalog.yaml")
    assert len(opened["wide"].tracks) == len(expected)
    assert set(opened.tracks["status"]) == {"gone"}
    again = maker.contents(store)
    for track_id, versions in expected.items():
        stored = {name: digest for name, digest in again[track_id].items() if name != "status"}
        assert (
            stored.items() >= {name: digest for name, digest in versions.items() if name != "status"}.items()
        )


def test_newer_format_is_refused(old: Any) -> None:
    store, _ = old
    content = json.loads((store / FORMAT_FILE).read_text())
    (store / FORMAT_FILE).write_text(json.dumps({**content, "format": FORMAT + 1}))
    with pytest.raises(StoreFormatError, match="Install a newer mirstore"):
        FeatureStore(store)


def test_the_script_makes_such_a_store(
    maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "HERE", tmp_path)
    (tmp_path / "folder").mkdir()
    maker.make(tmp_path / "folder", "made")
    made = json.loads((tmp_path / "made.json").read_text())
    newest = json.loads((STORES / f"{NAMES[-1]}.json").read_text())
    assert made.keys() == newest.keys()
    shutil.rmtree(tmp_path / "folder" / "store")
    unpack(tmp_path / "made.tar.gz", tmp_path / "folder")
    assert maker.contents(tmp_path / "folder" / "store") == made
