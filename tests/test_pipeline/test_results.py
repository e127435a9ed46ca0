"""What the commands print: text without loose ends, JSON objects, and hints that lead somewhere."""

import os
import re
from typing import Any

import pytest

from pipeline import FeatureStore
from pipeline.errors import StoreDamagedError, did_you_mean
from pipeline.store import removal

AUDIO = "audio: {kind: audio}"


@pytest.fixture
def three(empty_project: Any) -> Any:
    """A whole song, one that is cut short, and a file that is no audio."""
    empty_project.write_catalog(AUDIO, "logmel: {kind: log_mel, from: audio, n_mels: 32}")
    empty_project.add_song("whole.wav", seconds=3.0, seed=1)
    cut = empty_project.add_song("cut.wav", seconds=3.0, seed=2)
    os.truncate(cut, cut.stat().st_size // 2)
    (empty_project.music / "fake.wav").write_bytes(b"no audio at all, but not empty")
    report = empty_project.extract()
    assert (report.songs, report.failures) == (2, 1)
    return empty_project


def test_failures_name_truncated_tracks_too(three: Any) -> None:
    found = three.run_json("failures")
    assert [row["track_id"] for row in found["failed"]] == ["demo/fake.wav"]
    [truncated] = found["truncated"]
    assert truncated == {
        "track_id": "demo/cut.wav",
        "uri": str(three.music / "cut.wav"),
        "reason": three.store.tracks.loc["demo/cut.wav", "truncated"],
    }
    assert len(found["truncated"]) == three.run_json("status")["truncated"]
    heading, failed, cut = three.run("failures").stdout.splitlines()
    assert heading.split() == ["track", "stage", "reason"]
    assert failed.startswith("demo/fake.wav  open")
    assert cut == f"demo/cut.wav   truncated  {truncated['reason']}"
    assert "truncated" in three.run("failures", "--help").stdout
    past = three.run_json("failures", "--snapshot", "0")
    assert past == {"failed": [], "truncated": []}


def test_text_has_no_loose_ends(three: Any) -> None:
    verbs = (
        "status",
        "features",
        "failures",
        "snapshots",
        "diff 0",
        "labels list",
        "forget demo/cut.wav --dry-run",
    )
    for verb in verbs:
        done = three.run(*verb.split())
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("\n")
        assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]
        assert not re.search("[0-9a-f]{32}", done.stdout)


def test_a_version_is_a_feature_and_its_fingerprint(three: Any) -> None:
    logmel = three.store["logmel"]
    version = f"logmel@{logmel.fingerprint}"
    assert version in [row["version"] for row in three.run_json("features")["features"]]
    assert version in three.run("features").stdout
    assert version in [row["version"] for row in three.run_json("catalog", "check")["features"]]
    before, snapshot = three.rows(), three.store.snapshot
    planned = three.run_json("drop", version, "--dry-run", "--force")
    assert (planned["version"], planned["dry_run"]) == (version, True)
    assert f"{version} would be dropped" in three.run("drop", version, "--dry-run", "--force").stdout
    assert (three.rows(), three.store.snapshot) == (before, snapshot)
    assert three.run("drop", version, "--dry-run").returncode == 2  # as without: the catalog asks for it
    assert three.run_json("drop", version, "--force") == {**planned, "dry_run": False}
    assert {key for key in before if key[1] == version}.isdisjoint(three.rows())


def test_times_are_written_in_one_way(three: Any) -> None:
    for row in three.run_json("snapshots"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", row["committed"])


def test_a_forgotten_track_is_not_taken_for_another(three: Any) -> None:
    removal.forget(three.store_folder, ["demo/whole.wav"])
    (three.music / "whole.wav").rename(three.music / "whale.wav")
    assert three.run("forget", "demo/whole.wav").stderr == (
        f"mirstore: {three.store_folder} has no track 'demo/whole.wav'. 'demo/whole.wav' was already forgotten. "
        "Nothing was forgotten.\n"
    )
    removal.allow(three.store_folder, ["demo/whole.wav"])
    three.extract()
    told = three.run("forget", "demo/whole.wav").stderr
    assert "already" not in told
    assert "Did you mean 'demo/whale.wav'?" in told


def test_a_query_tells_why_a_file_has_no_features(three: Any) -> None:
    for verb in ("query", "show"):
        told = three.run(verb, "demo/fake.wav").stderr
        assert told.startswith("mirstore: demo/fake.wav has no features: ")


def test_comments_of_a_list_are_no_tracks(three: Any) -> None:
    (three.folder / "list.txt").write_text("# by request\n\n  # of today\ndemo/cut.wav\n")
    done = three.run_json("forget", "--from", "list.txt", "--dry-run")
    assert [track["track_id"] for track in done["tracks"]] == ["demo/cut.wav"]


def test_what_is_wrong_is_told_in_lines_of_one_kind(three: Any) -> None:
    three.catalog.write_text(
        three.catalog.read_text().replace("kind: audio", "kind: sound").replace("32", "x")
    )
    done = three.run("status")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) > 1
    assert all(line.startswith("mirstore: ") for line in done.stderr.splitlines())


def test_damage_is_told_with_both_cures(three: Any) -> None:
    store = FeatureStore(three.catalog)
    part, array = next(iter(store["logmel"].rows.arrays.items()))
    [shard, *_] = sorted(
        path for path in (three.store_folder / "parts" / part / array / "c").rglob("*") if path.is_file()
    )
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    first = store.tracks["row_start"].idxmin()
    with pytest.raises(StoreDamagedError) as told:
        store["logmel"].values(first)
    assert "Restore the part from a backup" in str(told.value)
    assert "`mirstore forget --allow`" in str(told.value)
    shown = three.run("verify")
    assert shown.returncode == 1
    assert shown.stdout.count("from a backup") == 1
    assert "`mirstore forget --allow`" in shown.stdout.splitlines()[-1]
    assert part not in shown.stdout
    assert part[:8] in shown.stdout


def test_an_export_of_no_track_says_so(three: Any) -> None:
    line = ("export", "out", "--feature", "logmel")
    assert "no track matches" in three.run(*line, "--where", "duration_s > 1e9").stderr
    for name in ("whole", "cut"):
        removal.forget(three.store_folder, [f"demo/{name}.wav"])
    assert "the store has no tracks" in three.run(*line).stderr
    assert not (three.folder / "out").exists()


def test_a_page_is_of_three_formats(three: Any) -> None:
    told = three.run("show", "demo/whole.wav", "-o", "page.xyz").stderr
    assert told == "mirstore: page.xyz: expected a name that ends in .png, .pdf or .svg.\n"
    for ending in ("PNG", "pdf", "svg"):
        assert three.run("show", "demo/whole.wav", "-o", f"page.{ending}").returncode == 0
        assert (three.folder / f"page.{ending}").stat().st_size > 1000


@pytest.mark.parametrize(
    ("typed", "known", "hint"),
    [
        ("mine/sing/Inevitable.ogg", "mine/sing/new\nline.ogg", None),
        ("mine/nope.ogg", "mine/short.ogg", None),
        ("mine/fake.mp3", "mine/asc/frontiers.mp3", None),
        ("a long collection/a.wav", "a long collection/b.wav", None),
        ("mine/Inevitabel.ogg", "mine/Inevitable.ogg", True),
        ("mine/Inevitable.mp3", "mine/Inevitable.ogg", True),
        ("mine/Inevitable.ogg", "mine/sing/Inevitable.ogg", True),
        ("Inevitable.ogg", "mine/Inevitable.ogg", True),
        ("genre", "gnere", True),
        ("uri", "url", True),
    ],
)
def test_only_near_names_are_offered(typed: str, known: str, hint: bool | None) -> None:
    assert did_you_mean(typed, ["quite another", known]) == (f" Did you mean {known!r}?" if hint else "")
