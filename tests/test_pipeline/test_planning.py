"""Planning: a pure function of what is there and what the store has."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.framing import Grid
from pipeline.definitions import AudioDefinition, Feature, LogMelDefinition, MfccDefinition, resolve
from pipeline.planning import Action, Plan, batches, estimated_rows, files_to_hash, plan, wanted_features
from pipeline.store.index import Index
from pipeline.store.records import TrackRow

GRID = Grid(frames_per_chunk=64, min_tail_s=0.5)
RESOLVED = resolve(
    {
        "audio": AudioDefinition(kind="audio"),
        "logmel": LogMelDefinition(kind="log_mel", from_="audio"),
        "mfcc": MfccDefinition(kind="mfcc", from_="logmel"),
    },
    GRID,
)
FEATURES = tuple(RESOLVED.values())
FILE = {"size": 1000, "mtime_ns": 5}


def scanned(*files: dict[str, Any]) -> pd.DataFrame:
    """What a scan found: files by name, of collection ``demo`` unless they say otherwise."""
    rows = []
    for file in files:
        collection = file.get("collection", "demo")
        name = file["name"]
        row = {"track_id": f"{collection}/{name}", "collection": collection, "uri": f"/music/{name}", **FILE}
        rows.append({**row, "labels": None, **{k: v for k, v in file.items() if k != "name"}})
    columns = ["track_id", "collection", "uri", "size", "mtime_ns", "labels"]
    table = pd.DataFrame(rows, columns=columns)
    return table.astype({"size": np.int64, "mtime_ns": np.int64, "track_id": "str", "uri": "str"})


def problems(**reasons: str) -> pd.DataFrame:
    rows = [(f"demo/{name}", "demo", f"/music/{name}", reason) for name, reason in reasons.items()]
    return pd.DataFrame(rows, columns=["track_id", "collection", "uri", "reason"], dtype="str")


def known(name: str, **values: Any) -> TrackRow:
    """A row of the index: extracted without trouble into part p, unless told otherwise."""
    row = TrackRow(
        track_id=f"demo/{name}",
        collection="demo",
        uri=f"/music/{name}",
        status="ok",
        content_hash=f"hash of {name}",
        part="p",
        row_start=0,
        n_chunks=1,
        **FILE,
    )
    return replace(row, **values)


def broken(name: str, **values: Any) -> TrackRow:
    failure = {"status": "failed", "stage": "decode", "reason": "no", "part": None, "row_start": None}
    return known(name, **{**failure, **values})


def indexed(*rows: TrackRow) -> pd.DataFrame:
    if not rows:
        return Index.no_tracks()
    table = pd.DataFrame([asdict(row) for row in rows])
    whole = [c.name for c in fields(TrackRow) if c.type in (int, int | None)]
    return table.astype(dict.fromkeys(whole, "Int64"))


def arrays(part_features: dict[str, Sequence[Feature]]) -> pd.DataFrame:
    rows = [
        {"part": part, "fingerprint": feature.fingerprint}
        for part, present in part_features.items()
        for feature in present
    ]
    return pd.DataFrame(rows, columns=["part", "fingerprint"])


COMPLETE = arrays({"p": FEATURES})


def planned(
    files: pd.DataFrame, index: pd.DataFrame, has: pd.DataFrame = COMPLETE, **options: Any
) -> dict[str, tuple[str, str]]:
    """Action and reason by name."""
    found = options.pop("problems", problems())
    options = {"collections": ["demo"], **options}
    todo = plan(files, found, index, has, FEATURES, **options)
    assert todo.tracks["track_id"].is_unique
    table = todo.tracks
    names = table["track_id"].str.removeprefix("demo/")
    return dict(zip(names, zip(table["action"], table["reason"], strict=True), strict=True))


def test_new_file() -> None:
    assert planned(scanned({"name": "a"}), indexed()) == {"a": (Action.EXTRACT, "new")}


@pytest.mark.parametrize("index", [indexed(), indexed(known("a"))], ids=["new store", "all files gone"])
def test_empty_collection(index: pd.DataFrame) -> None:
    todo = plan(scanned(), problems(), index, COMPLETE, FEATURES, collections=["demo"])
    assert list(todo.tracks["action"]) == [Action.MARK_GONE] * len(index)
    assert len(todo.to_records()) == len(todo.summary()) == len(index)


def emptied(files: pd.DataFrame, index: pd.DataFrame, **options: Any) -> dict[str, int]:
    found = options.pop("problems", problems())
    todo = plan(files, found, index, COMPLETE, FEATURES, **{"collections": ["demo", "other"], **options})
    return dict(todo.emptied)


def test_a_collection_that_lost_everything_is_named() -> None:
    elsewhere = known("x", track_id="other/x", collection="other")
    index = indexed(known("a"), known("b", status="gone"), broken("c"), elsewhere)
    one = scanned({"name": "x", "collection": "other"})
    assert emptied(one, index) == {"demo": 2}  # a failure never was a track with features
    assert emptied(scanned(), index) == {"demo": 2, "other": 1}
    assert emptied(scanned(), index, collections=["other"]) == {"other": 1}
    new = scanned({"name": "new"}, {"name": "x", "collection": "other"})
    assert emptied(new, index) == {}
    assert emptied(scanned({"name": "a"}, {"name": "x", "collection": "other"}), index) == {}
    assert emptied(scanned(), indexed(broken("c"), broken("d", status="gone"))) == {}
    assert emptied(one, index, problems=problems(a="empty file")) == {}
    assert emptied(one, index, problems=problems(**{"": "folder cannot be listed: denied"})) == {}


def test_a_collection_whose_files_moved_on_is_emptied_only_of_the_rest() -> None:
    index = indexed(known("a"), known("b"))
    moved = scanned({"name": "a", "collection": "other", "uri": "/else/a"})
    assert emptied(moved, index, hashes={"/else/a": "hash of a"}) == {"demo": 1}
    both = pd.concat([moved, scanned({"name": "b", "collection": "other", "uri": "/else/b"})])
    hashes = {"/else/a": "hash of a", "/else/b": "hash of b"}
    assert emptied(both.reset_index(drop=True), index, hashes=hashes) == {}


def test_complete_track() -> None:
    todo = plan(
        scanned({"name": "a"}), problems(), indexed(known("a")), COMPLETE, FEATURES, collections=["demo"]
    )
    assert list(todo.tracks["action"]) == [Action.NOTHING]
    assert todo.is_empty
    assert not len(todo.parts)
    assert todo.to_records() == []


@pytest.mark.parametrize(
    ("file", "row", "hashes", "expected"),
    [
        ({"size": 7}, known("a"), {}, (Action.EXTRACT, "the file has changed")),
        ({"mtime_ns": 6}, known("a"), {"/music/a": "other"}, (Action.EXTRACT, "the file has changed")),
        ({"mtime_ns": 6}, known("a"), {}, (Action.EXTRACT, "the file has changed")),
        ({"mtime_ns": 6}, known("a"), {"/music/a": "hash of a"}, (Action.UPDATE, "touched, same content")),
        ({"uri": "/other/a"}, known("a"), {}, (Action.UPDATE, "its folder has another place")),
        ({"labels": '{"x": 1}'}, known("a"), {}, (Action.UPDATE, "labels have changed")),
        ({}, known("a", labels='{"x": 1}'), {}, (Action.UPDATE, "labels have changed")),
        ({"labels": '{"x": 1}'}, known("a", labels='{"x": 1}'), {}, (Action.NOTHING, "complete")),
        ({}, known("a", status="gone"), {}, (Action.BACK, "back in its collection")),
        ({"size": 7}, known("a", status="gone"), {}, (Action.EXTRACT, "the file has changed")),
        ({}, broken("a"), {}, (Action.SKIP, "failed before, unchanged")),
        ({"mtime_ns": 6}, broken("a"), {"/music/a": "hash of a"}, (Action.SKIP, "failed before, unchanged")),
        ({"size": 7}, broken("a"), {}, (Action.EXTRACT, "failed before, the file has changed")),
        ({}, broken("a", stage="scan"), {}, (Action.EXTRACT, "could not be opened before")),
        ({}, broken("a", status="gone"), {}, (Action.BACK_FAILED, "failed before, unchanged")),
        (
            {"mtime_ns": 6},
            broken("a", status="gone"),
            {"/music/a": "hash of a"},
            (Action.BACK_FAILED, "failed before, unchanged"),
        ),
        (
            {"mtime_ns": 6},
            broken("a", status="gone"),
            {"/music/a": "other"},
            (Action.EXTRACT, "failed before, the file has changed"),
        ),
        (
            {"size": 7},
            broken("a", status="gone"),
            {},
            (Action.EXTRACT, "failed before, the file has changed"),
        ),
        # With features, the row has the size and time of what failed, and the hash of what they are of.
        ({}, broken("a", status="gone", part="p"), {}, (Action.BACK_FAILED, "failed before, unchanged")),
        (
            {"mtime_ns": 6},
            broken("a", status="gone", part="p"),
            {"/music/a": "hash of a"},
            (Action.BACK, "the file is back"),
        ),
        (
            {"mtime_ns": 6},
            broken("a", part="p"),
            {"/music/a": "hash of a"},
            (Action.UPDATE, "the file is back"),
        ),
        (
            {"mtime_ns": 6},
            broken("a", status="gone", part="p"),
            {"/music/a": "other"},
            (Action.EXTRACT, "failed before, the file has changed"),
        ),
    ],
)
def test_one_file(
    file: dict[str, Any], row: TrackRow, hashes: dict[str, str], expected: tuple[Action, str]
) -> None:
    assert planned(scanned({"name": "a", **file}), indexed(row), hashes=hashes) == {"a": expected}


@pytest.mark.parametrize(
    ("row", "forgotten", "expected"),
    [
        (
            broken("a", stage="forgotten"),
            ["hash of a", "x"],
            (Action.SKIP, "the content of a forgotten track"),
        ),
        (
            broken("a", stage="forgotten"),
            ["x"],
            (Action.EXTRACT, "the content of a forgotten track, allowed again"),
        ),
        # Its features are of what the file was before.
        (
            broken("a", stage="forgotten", part="p"),
            ["now"],
            (Action.SKIP, "the content of a forgotten track"),
        ),
        (
            broken("a", stage="forgotten", part="p"),
            ["hash of a"],
            (Action.EXTRACT, "the content of a forgotten track, allowed again"),
        ),
        (known("a"), ["hash of a"], (Action.NOTHING, "complete")),
        (
            broken("a", status="gone", stage="forgotten", part="p"),
            ["now"],
            (Action.BACK_FAILED, "the content of a forgotten track"),
        ),
        (
            broken("a", status="gone", stage="forgotten", part="p"),
            ["hash of a"],
            (Action.EXTRACT, "the content of a forgotten track, allowed again"),
        ),
        (broken("a", status="gone", part="p", stage="fetch"), [], (Action.BACK, "back in its collection")),
    ],
)
def test_forgotten_content(row: TrackRow, forgotten: list[str], expected: tuple[Action, str]) -> None:
    files, index = scanned({"name": "a"}), indexed(row)
    assert files_to_hash(files, index) == (["/music/a"] if row.stage == "forgotten" and row.part else [])
    options = {"hashes": {"/music/a": "now"}, "forgotten": forgotten}
    assert planned(files, index, **options)["a"] == expected
    if expected[0] in (Action.SKIP, Action.BACK_FAILED):
        assert planned(files, index, retry_failed=True, **options)["a"] == expected


def test_failed_file_is_retried_on_request() -> None:
    files = scanned({"name": "a"}, {"name": "b"}, {"name": "c"})
    index = indexed(broken("a"), known("b"), broken("c", status="gone"))
    assert planned(files, index, retry_failed=True) == {
        "a": (Action.EXTRACT, "failed before, retried on request"),
        "b": (Action.NOTHING, "complete"),
        "c": (Action.EXTRACT, "failed before, retried on request"),
    }


def test_gone_file_is_marked_once() -> None:
    files = scanned({"name": "b"})
    result = planned(files, indexed(known("a"), known("b")))
    assert result["a"] == (Action.MARK_GONE, "not found")
    result = planned(files, indexed(known("a", status="gone"), known("b")))
    assert result["a"] == (Action.NOTHING, "gone before")


def test_other_collections_are_left_alone() -> None:
    other = known("a", track_id="other/a", collection="other")
    files, index = scanned({"name": "b"}), indexed(other, known("b"))
    assert planned(files, index) == {"b": (Action.NOTHING, "complete")}
    result = planned(files, index, collections=["demo", "other"])
    assert result["other/a"] == (Action.MARK_GONE, "not found")


@pytest.mark.parametrize(
    ("present", "action", "missing"),
    [
        (FEATURES[:2], Action.COMPUTE, ("mfcc",)),
        (FEATURES[:1], Action.COMPUTE, ("logmel", "mfcc")),
        ((FEATURES[0], FEATURES[2]), Action.COMPUTE, ("logmel",)),
    ],
)
def test_missing_feature_is_computed_by_part(
    present: Sequence[Feature], action: Action, missing: tuple[str, ...]
) -> None:
    files = scanned({"name": "a"}, {"name": "b"}, {"name": "c"})
    index = indexed(known("a"), known("b", part="q"), known("c"))
    has = arrays({"p": present, "q": FEATURES})
    todo = plan(files, problems(), index, has, FEATURES, collections=["demo"])
    assert list(todo.tracks["action"]) == [action, Action.NOTHING, action]
    assert todo.tracks["reason"][0] == f"no {', '.join(missing)}"
    assert todo.parts.to_dict(orient="records") == [{"part": "p", "missing": missing, "tracks": 2}]


def test_missing_audio_needs_the_file() -> None:
    result = planned(scanned({"name": "a"}), indexed(known("a")), arrays({"p": FEATURES[1:]}))
    assert result == {"a": (Action.EXTRACT, f"no {FEATURES[0].array_name}")}


def test_changed_file_goes_before_its_missing_feature() -> None:
    result = planned(scanned({"name": "a", "size": 7}), indexed(known("a")), arrays({"p": FEATURES[:1]}))
    assert result["a"] == (Action.EXTRACT, "the file has changed")


def test_moved_file() -> None:
    files = scanned({"name": "new"})
    index = indexed(known("old"))
    assert files_to_hash(files, index) == ["/music/new"]
    todo = plan(
        files,
        problems(),
        index,
        COMPLETE,
        FEATURES,
        collections=["demo"],
        hashes={"/music/new": "hash of old"},
    )
    assert todo.tracks[["track_id", "action", "reason", "old_track_id"]].to_dict(orient="records") == [
        {
            "track_id": "demo/new",
            "action": "move",
            "reason": "moved, same content",
            "old_track_id": "demo/old",
        }
    ]


def test_two_copies_of_a_gone_file() -> None:
    files = scanned({"name": "x"}, {"name": "y"})
    hashes = dict.fromkeys(files["uri"], "hash of old")
    assert planned(files, indexed(known("old")), hashes=hashes) == {
        "x": (Action.MOVE, "moved, same content"),
        "y": (Action.EXTRACT, "new"),
    }


def test_file_like_a_gone_failure_is_new() -> None:
    files = scanned({"name": "new"})
    result = planned(files, indexed(broken("old")), hashes={"/music/new": "hash of old"})
    assert result["new"] == (Action.EXTRACT, "new")
    assert result["old"] == (Action.MARK_GONE, "not found")


def test_copy_of_a_present_file_is_new_and_not_read() -> None:
    files, index = scanned({"name": "a"}, {"name": "copy"}), indexed(known("a"))
    assert files_to_hash(files, index) == []
    assert planned(files, index)["copy"] == (Action.EXTRACT, "new")


@pytest.mark.parametrize(
    ("file", "row", "read"),
    [
        ({"name": "a"}, known("a"), False),
        ({"name": "a", "mtime_ns": 6}, known("a"), True),
        ({"name": "a", "mtime_ns": 6, "size": 7}, known("a"), False),
        ({"name": "a", "mtime_ns": 6}, known("a", content_hash=None), False),
        ({"name": "b"}, known("a"), True),
        ({"name": "b", "size": 7}, known("a"), False),
    ],
)
def test_only_doubtful_files_are_read(file: dict[str, Any], row: TrackRow, read: bool) -> None:
    assert bool(files_to_hash(scanned(file), indexed(row))) is read


def test_problem_is_told_once() -> None:
    files, found = scanned({"name": "b"}), problems(a="empty file")
    assert planned(files, indexed(), problems=found)["a"] == (Action.FAIL, "empty file")
    index = indexed(broken("a", stage="scan", reason="empty file", content_hash=None))
    assert planned(files, index, problems=found)["a"] == (Action.SKIP, "empty file")
    other = problems(a="broken symlink")
    assert planned(files, index, problems=other)["a"] == (Action.FAIL, "broken symlink")
    gone = indexed(broken("a", status="gone", stage="scan", reason="empty file"))
    assert planned(files, gone, problems=found)["a"] == (Action.BACK_FAILED, "empty file")
    assert planned(files, gone, problems=other)["a"] == (Action.FAIL, "broken symlink")


def test_tracks_and_failed_files_are_counted_apart() -> None:
    index = indexed(known("a"), broken("b"), broken("c", part="p"), known("d", status="gone"))
    todo = plan(scanned(), problems(), index, COMPLETE, FEATURES, collections=["demo"])
    assert todo.count(Action.MARK_GONE) == (2, 1)
    index = indexed(
        known("a", status="gone"), broken("b", status="gone"), broken("c", status="gone", part="p")
    )
    files = scanned({"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "new"})
    todo = plan(files, problems(), index, COMPLETE, FEATURES, collections=["demo"])
    assert todo.count(Action.BACK, Action.BACK_FAILED) == (2, 1)
    assert todo.count(Action.EXTRACT) == (0, 1)


def test_tracks_below_an_unreadable_folder_are_not_gone() -> None:
    index = indexed(known("sub/a"), known("b"))
    result = planned(
        scanned({"name": "b"}), index, problems=problems(**{"sub/": "folder cannot be listed: denied"})
    )
    assert result.get("sub/a", (Action.NOTHING,))[0] is not Action.MARK_GONE


def test_records_are_json() -> None:
    files = scanned({"name": "new"}, {"name": "c", "labels": "{}"})
    todo = plan(
        files,
        problems(bad="empty file"),
        indexed(known("a")),
        COMPLETE,
        FEATURES,
        collections=["demo"],
        hashes={"/music/new": "hash of a"},
    )
    assert json.loads(json.dumps(todo.to_records(), allow_nan=False, default=int))


def test_wanted_features_bring_their_upstream() -> None:
    assert [f.name for f in wanted_features(RESOLVED, ["logmel"])] == ["audio", "logmel"]
    assert [f.name for f in wanted_features(RESOLVED, ["mfcc"])] == ["audio", "logmel", "mfcc"]
    assert [f.name for f in wanted_features(RESOLVED)] == ["audio", "logmel", "mfcc"]


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_feature_computed_from_a_double_still_finds_its_upstream(order: tuple[str, str]) -> None:
    definitions: dict[str, Any] = {"audio": AudioDefinition(kind="audio")}
    for name in order:
        definitions[name] = LogMelDefinition(kind="log_mel", from_="audio")
    definitions["mfcc"] = MfccDefinition(kind="mfcc", from_="two")
    wanted = wanted_features(resolve(definitions, GRID))
    names = {feature.name for feature in wanted}
    assert len(wanted) == len({feature.fingerprint for feature in wanted}) == 3
    assert {feature.upstream for feature in wanted} - {None} <= names


# A world of files and a store, and what a run makes of the store.

NAMES = st.sampled_from(["a", "b", "c", "d"])
CONTENTS = st.integers(0, 3)
WORLDS = st.dictionaries(
    NAMES, st.tuples(CONTENTS, st.integers(0, 2), st.sampled_from([None, '{"x": 1}'])), max_size=4
)


def files_of(world: dict[str, tuple[int, int, str | None]]) -> pd.DataFrame:
    """Files of a world: content 3 is broken, contents 0 and 1 have one size; one file is always there."""
    return scanned(
        {"name": "always", "size": 1, "mtime_ns": 0},
        *(
            {"name": name, "size": 1000 + content // 2, "mtime_ns": mtime_ns, "labels": labels}
            for name, (content, mtime_ns, labels) in sorted(world.items())
        ),
    )


class Model:
    """A store as plain values, changed as `extract` would."""

    def __init__(self) -> None:
        self.rows: dict[str, TrackRow] = {}
        self.parts: dict[str, set[Feature]] = {}

    def plan(
        self, world: dict[str, tuple[int, int, str | None]], features: tuple[Feature, ...], **options: Any
    ) -> Plan:
        files = files_of(world)
        index = indexed(*self.rows.values())
        hashes = {
            uri: f"content {world[uri.removeprefix('/music/')][0]}" for uri in files_to_hash(files, index)
        }
        has = arrays({part: sorted(present, key=lambda f: f.name) for part, present in self.parts.items()})
        return plan(files, problems(), index, has, features, collections=["demo"], hashes=hashes, **options)

    def apply(self, todo: Plan, world: dict[str, tuple[int, int, str | None]]) -> None:
        for row in todo.tracks.to_dict(orient="records"):
            track_id, action = row["track_id"], Action(row["action"])
            given = {key: row[key] for key in ("uri", "size", "mtime_ns")}
            given["labels"] = row["labels"] if isinstance(row["labels"], str) else None
            if action is Action.EXTRACT:
                name = track_id.removeprefix("demo/")
                content, *_ = world.get(name, ("always",))
                values = {**given, "content_hash": f"content {content}"}
                before = self.rows.get(track_id)
                if content == 3 and before is not None and before.part is not None:
                    self.rows[track_id] = replace(before, status="failed", stage="decode", **given)
                elif content == 3:
                    self.rows[track_id] = broken(name, **values)
                else:
                    part = f"part {len(self.parts)}"
                    self.parts[part] = set(todo.features)
                    self.rows[track_id] = known(name, part=part, **values)
            elif action is Action.MARK_GONE:
                self.rows[track_id] = replace(self.rows[track_id], status="gone")
            elif action is Action.BACK_FAILED:
                self.rows[track_id] = replace(self.rows[track_id], status="failed", **given)
            elif action in (Action.UPDATE, Action.BACK):
                self.rows[track_id] = replace(self.rows[track_id], status="ok", stage=None, **given)
            elif action is Action.MOVE:
                old = self.rows.pop(row["old_track_id"])
                self.rows[track_id] = replace(old, track_id=track_id, status="ok", stage=None, **given)
        for part, missing, _ in todo.parts.itertuples(index=False):
            by_name = {feature.name: feature for feature in todo.features}
            self.parts[part] |= {by_name[name] for name in missing}

    def settles(
        self, world: dict[str, tuple[int, int, str | None]], features: tuple[Feature, ...], *, runs: int
    ) -> bool:
        for _ in range(runs):
            self.apply(self.plan(world, features), world)
        return self.plan(world, features).is_empty

    def is_complete(
        self, world: dict[str, tuple[int, int, str | None]], features: tuple[Feature, ...]
    ) -> bool:
        """Whether every good file of the world has every feature, and every bad one failed."""
        for name, (content, _, labels) in world.items():
            row = self.rows[f"demo/{name}"]
            if content == 3:
                if row.status != "failed":
                    return False
            elif (
                row.status != "ok" or row.labels != labels or not set(features) <= self.parts[row.part or ""]
            ):
                return False
        return True


@settings(max_examples=15)
@given(st.lists(WORLDS, min_size=1, max_size=4))
def test_a_second_plan_is_empty(worlds: list[dict[str, tuple[int, int, str | None]]]) -> None:
    model = Model()
    for world in worlds:
        # Broken files that go are the matter of their own test above.
        kept = {name: file for name, file in world.items() if file[0] != 3}
        assert model.settles(kept, FEATURES, runs=1)
        assert model.is_complete(kept, FEATURES)


@settings(max_examples=12)
@given(st.lists(WORLDS, min_size=2, max_size=4))
def test_no_track_is_ok_whose_features_are_of_another_content(
    worlds: list[dict[str, tuple[int, int, str | None]]],
) -> None:
    model = Model()
    for world in worlds:
        # A changed file has another time: nothing else tells contents of one size apart.
        files = {
            name: (content, 10 * content + time, labels) for name, (content, time, labels) in world.items()
        }
        todo = model.plan(files, FEATURES)
        for name, (content, time, _) in files.items():
            row = todo.tracks.set_index("track_id").loc[f"demo/{name}"]
            if content == 3 and row["action"] == Action.EXTRACT:
                known_as = model.rows.get(f"demo/{name}")
                # Tried again only where something else was there, or nothing was known, in between.
                assert known_as is None or known_as.stage is None or known_as.mtime_ns != time
        assert model.settles(files, FEATURES, runs=1)
        assert model.is_complete(files, FEATURES)
        for name, (content, _, _) in files.items():
            if content != 3:
                assert model.rows[f"demo/{name}"].content_hash == f"content {content}"


@settings(max_examples=25)
@given(WORLDS)
def test_a_second_plan_is_empty_with_broken_files(world: dict[str, tuple[int, int, str | None]]) -> None:
    model = Model()
    assert model.settles(world, FEATURES, runs=1)
    assert model.is_complete(world, FEATURES)


@settings(max_examples=25)
@given(WORLDS, WORLDS)
def test_new_features_and_changed_files_settle(
    before: dict[str, tuple[int, int, str | None]], after: dict[str, tuple[int, int, str | None]]
) -> None:
    model = Model()
    before, after = ({n: f for n, f in world.items() if f[0] != 3} for world in (before, after))
    model.settles(before, FEATURES[:1], runs=1)
    assert model.settles(after, FEATURES, runs=1)
    assert model.is_complete(after, FEATURES)


def test_touched_file_that_lacks_a_feature_needs_one_run() -> None:
    model = Model()
    model.settles({"a": (0, 0, None)}, FEATURES[:1], runs=1)
    assert model.settles({"a": (0, 1, None)}, FEATURES, runs=1)


def test_moved_file_that_lacks_a_feature_needs_one_run() -> None:
    model = Model()
    model.settles({"a": (0, 0, None)}, FEATURES[:1], runs=1)
    assert model.settles({"b": (0, 0, None)}, FEATURES, runs=1)


SIZES = st.lists(st.integers(1, 50_000_000), max_size=60)


@given(SIZES, st.integers(1, 16), st.integers(1, 300))
def test_batches(sizes: list[int], workers: int, rows_per_job: int) -> None:
    tracks = scanned(*({"name": f"{n}.ogg", "size": size} for n, size in enumerate(sizes)))
    jobs = batches(tracks, GRID, workers=workers, rows_per_job=rows_per_job)
    together = [track_id for job in jobs for track_id in job["track_id"]]
    assert sorted(together) == sorted(tracks["track_id"])
    assert all(len(job) for job in jobs)
    in_order = [rows for job in jobs for rows in estimated_rows(job, GRID)]
    assert in_order == sorted(in_order, reverse=True)
    # What a job may hold shrinks with what is left; only a single track may be more.
    left = float(estimated_rows(tracks, GRID).sum()) if len(tracks) else 0.0
    for job in jobs:
        rows = float(estimated_rows(job, GRID).sum())
        assert len(job) == 1 or rows <= min(rows_per_job, max(8.0, left / workers)) + 1e-6
        left -= rows


def test_batches_of_equal_songs_shrink() -> None:
    tracks = scanned(*({"name": f"{n}.ogg", "size": 200_000} for n in range(500)))
    numbers = [len(job) for job in batches(tracks, GRID, workers=4)]
    assert len(numbers) >= 4 * 4
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] > 3 * numbers[-1]


def test_rows_are_estimated_by_ending() -> None:
    grid = Grid()
    tracks = scanned(
        {"name": "a.WAV", "size": 176_000 * 60},
        {"name": "b.ogg", "size": 18_000 * 60},
        {"name": "no ending", "size": 1},
    )
    np.testing.assert_allclose(estimated_rows(tracks, grid), [60 / grid.chunk_s, 60 / grid.chunk_s, 1.0])
