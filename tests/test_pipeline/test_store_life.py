"""A store's whole life at random: whatever is done to it, in whatever order, and wherever it is cut short.

A model of plain dicts says what must be visible after each step, now and in every snapshot; what a track's
rows are is computed beside the store. Jobs run one after the other in this process, so that they can be cut
anywhere and every run is the same; real workers do each store's last extraction.

For a long search that also makes what it finds short:
``MIRSTORE_LIFE_EXAMPLES=500 pytest --hypothesis-profile=search <this file>``.
"""

import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
import soundfile as sf
from deltalake import DeltaTable
from deltalake.table import TableMerger, TableOptimizer
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import pipeline.cluster
import pipeline.run
import pipeline.store.compaction as compaction_module
import pipeline.store.erasures as erasures_module
import pipeline.store.folder as folder_module
import pipeline.store.index as index_module
import pipeline.store.parts as parts_module
import pipeline.workers
from features.framing import chunks
from pipeline import FeatureStore, extract
from pipeline.catalog import Catalog, load_catalog
from pipeline.computation import FeatureChain
from pipeline.decoding import decode
from pipeline.errors import StoreDamagedError, StoreError, UnknownNameError
from pipeline.jobs import run
from pipeline.store import removal
from pipeline.store.compaction import compact
from pipeline.store.erasures import blocked_contents, blocked_hashes, erasures, name_hash
from pipeline.store.folder import Folder
from pipeline.store.garbage import collect_garbage
from pipeline.store.index import Index, writable_index
from pipeline.store.records import track_rows
from pipeline.store.shard_reader import ShardReader
from pipeline.store.verification import verify

USUAL_EXAMPLES = 16
EXAMPLES = int(os.environ.get("MIRSTORE_LIFE_EXAMPLES", str(USUAL_EXAMPLES)))
STEPS = 24
# What a usual run does at least, in all; in fact it does several times that.
COMMANDS = ("extract", "prune", "forget", "compact", "gc", "drop", "label")
EVERYTHING = (
    *COMMANDS,
    *("add", "change", "move", "remove", "change_features", "allow", "forget_unknown"),
    *("open_reader", "travel", "past read", "past refused"),
)
# Drawn from as they stand.
ACTIONS = (
    *("change_and_extract",) * 7,
    *("compact", "gc", "prune", "allow") * 4,
    *("forget", "label", "drop") * 3,
    *("change_features", "open_reader", "travel") * 2,
    *("change", "extract_again", "forget_unknown"),
)
LEAST_RUNS, LEAST_CUTS, LEAST_CUTS_IN_ALL = 3, 2, 50
SMALL_ROWS = 3  # of a part, for compaction; songs have up to three
NAMES = ("a.wav", "b.wav", "c.wav", "sub/d.wav", "e.wav")
SECONDS = (0.1, 1.0, 1.7, 3.0)  # a content's number gives length and seed; chunks are 1.37 s
GARBAGE = None
CONTENTS = st.sampled_from([*range(8), GARBAGE])
WEEK_S = 7 * 86_400.0
AUDIO, FLOATS = "audio: {kind: audio, dtype: int16}", "audio: {kind: audio, dtype: float32}"
LOGMEL = "logmel: {kind: log_mel, from: audio, n_mels: 8}"
FINE = "logmel: {kind: log_mel, from: audio, n_mels: 12}"
MFCC = "mfcc: {kind: mfcc, from: logmel, n_mfcc: 4}"
FEATURES = ((AUDIO, LOGMEL), (AUDIO, FINE, MFCC), (AUDIO, LOGMEL, MFCC), (FLOATS, LOGMEL))
CATALOG = """\
version: 1
store: ./store
grid: {{frames_per_chunk: 64, min_tail_s: 0.5}}
collections:
  demo: {{path: ./music}}
features:
{features}
"""
View = dict[str, tuple[str, str | None, frozenset[tuple[str, str]]]]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


class Cut(BaseException):
    """The process ends here."""


@dataclass(frozen=True)
class Place:
    """Where a command is cut: at which kind of its steps, at which of these, and before, halfway or after."""

    kind: int
    turn: int
    phase: int

    def among(self, steps: list[str]) -> tuple[int, int]:
        """Number and phase of the step, of those that a command takes."""
        kinds = sorted(set(steps))
        kind = kinds[self.kind % len(kinds)]
        turns = [number for number, step in enumerate(steps) if step == kind]
        return turns[self.turn % len(turns)], self.phase


PLACES = st.builds(Place, st.integers(0, 11), st.integers(0, 11), st.integers(0, 2))
CUT_OR_NOT = st.none() | PLACES


def half_deleted(folder: Folder, prefix: str) -> None:
    files = sorted(path for path in (folder.path / prefix).rglob("*") if path.is_file())
    for path in files[::2]:
        path.unlink()


def half_written(folder: Folder, key: str, content: bytes) -> None:
    path = folder.path / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f".{path.name}.{os.getpid()}").write_bytes(content[: len(content) // 2])


def half_appended(file: Any, content: bytes) -> None:
    file._file.write(content[: len(content) // 2])


@contextlib.contextmanager
def watched(end: tuple[int, int] | None = None) -> Iterator[list[str]]:
    """Note the steps that change the store, by kind; end whatever runs in the block at one of them.

    Nothing after it happens, as nothing does after a kill: no cleaning up either.
    """
    number, phase = end or (-1, 0)
    steps: list[str] = []
    opened = contextlib.ExitStack()
    inside = dead = False

    def wrapped(kind: str, genuine: Callable[..., Any], halfway: Callable[..., Any] | None) -> Any:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal inside, dead
            if dead:
                raise Cut
            if inside or options.get("dry_run"):
                return genuine(*arguments, **options)
            place = arguments[1].split("/")[0] if isinstance(arguments[0], Folder) else ""
            steps.append(f"{kind} {place}")
            mine = len(steps) - 1 == number
            dead = mine
            if mine and phase == 0:
                raise Cut
            if mine and phase == 1 and halfway is not None:
                halfway(*arguments)
                raise Cut
            inside, dead = True, False
            try:
                done = genuine(*arguments, **options)
            finally:
                inside, dead = False, mine
            if kind == "writer":
                opened.callback(done.abandon)  # as its process would at its end
            if mine:
                raise Cut
            return done

        return step

    with opened, contextlib.ExitStack() as stack:
        for owner, name, halfway in (
            (Folder, "write", half_written),
            (Folder, "writer", None),
            (Folder, "delete", half_deleted),
            (Folder, "sync", None),
            (folder_module._FileWriter, "write", half_appended),
            (folder_module._FileWriter, "close", None),
            (index_module, "write_deltalake", None),
            (DeltaTable, "restore", None),
            (DeltaTable, "delete", None),
            (DeltaTable, "vacuum", None),
            (TableMerger, "execute", None),
            (TableOptimizer, "compact", None),
        ):
            stack.enter_context(mock.patch.object(owner, name, wrapped(name, getattr(owner, name), halfway)))
        yield steps


@contextlib.contextmanager
def jobs_done_here() -> Iterator[None]:
    """Have an extraction run its jobs in this process, in their order, and commit after each."""

    def finished_jobs(_client: None, jobs: Iterable[Any], **_: Any) -> Iterator[list[Any]]:
        for job in jobs:
            yield [run(job)]

    workers = SimpleNamespace(gather=lambda: None, usable=("one", "two"))
    with (
        mock.patch.object(pipeline.cluster, "connected", return_value=contextlib.nullcontext()),
        mock.patch.object(pipeline.cluster, "finished_jobs", finished_jobs),
        mock.patch.object(pipeline.workers, "Workers", return_value=workers),
        mock.patch.object(pipeline.run, "SECONDS_BETWEEN", 0.0),
    ):
        yield


def seconds_of(content: int) -> float:
    return SECONDS[content % len(SECONDS)]


def write_content(path: Path, content: int | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is GARBAGE:
        path.write_bytes(b"no audio at all" * 50)
        return
    noise = np.random.default_rng(content).uniform(-0.5, 0.5, round(seconds_of(content) * 12_000))
    sf.write(path, noise, 12_000, subtype="PCM_16")


def reference(folder: Path, content: int, catalog: Catalog) -> dict[str, bytes]:
    """Bytes of every feature of a content by version, computed without a store."""
    path = folder / "reference.wav"
    write_content(path, content)
    samples, _ = decode(path)
    features = tuple(catalog.resolved_features().values())
    names = {feature.name: f"{feature.name}@{feature.fingerprint}" for feature in features}
    rows: dict[str, list[bytes]] = defaultdict(list)
    chain = FeatureChain(features, lambda name, row: rows[names[name]].append(row.tobytes()))
    for chunk, _ in chunks(iter([samples]), features[0].grid):
        chain.push_audio(chunk)
    chain.finish_track()
    return {version: b"".join(found) for version, found in rows.items()}


@dataclass(frozen=True)
class Known:
    """What the index should say of a track; `odd` if its file's size is not that of the stored content."""

    status: str
    content: int | None
    versions: frozenset[str] = frozenset()
    label: str | None = None
    odd: bool = False


State = dict[str, Known]


class StoreLife(RuleBasedStateMachine):
    """One store; see the module."""

    scheduler = ""
    # What was done in all examples.
    ran: ClassVar[Counter[str]] = Counter()
    cuts: ClassVar[Counter[str]] = Counter()
    # Names of parts and erasures, which come in their order, are the same in every run.
    names: ClassVar[random.Random] = random.Random()
    references: ClassVar[dict[tuple[int, str], str]] = {}
    needles: ClassVar[dict[tuple[int, str], set[bytes]]] = defaultdict(set)

    def __init__(self) -> None:
        super().__init__()
        self.names.seed(0)
        self.folder = Path(tempfile.mkdtemp(prefix="life"))
        self.store_folder = self.folder / "store"
        self.files: dict[str, int | None] = {}
        self.contents: dict[str, int] = {}  # by SHA-256
        self.state: State = {}
        self.blocked: set[str] = set()
        # Contents that are not decoded under any name.
        self.refused: set[int] = set()
        self.past: dict[int, View] = {}
        self.oldest = 0
        # Names a move has joined; a past that was forgotten; which names ever brought which content.
        self.joined: dict[str, frozenset[str]] = {}
        self.forgotten: list[tuple[str, int]] = []
        self.owners: dict[int, set[str]] = defaultdict(set)
        self.reader: tuple[FeatureStore, View] | None = None
        self.catalogs: dict[int, Catalog] = {}
        self.changed = self.doubtful = False
        (self.folder / "music").mkdir()
        self.choose_features(0)

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.end()
        finally:
            shutil.rmtree(self.folder)

    def end(self) -> None:
        """Real workers do the rest, and what is kept of the past is as it was."""
        self.learn_references()
        candidates = list(self.predicted())
        extract(self.catalog, scheduler=self.scheduler)
        self.settle(candidates)
        for number in self.readable()[:-1:6]:
            self.check_past(number)

    def done(self, name: str, command: Callable[[], Any], at: Place | None) -> bool:
        """Run a command, and say whether it came to its end: a cut is at a step that it was seen to take."""
        self.changed = True
        if at is None:
            command()
            return True
        before = self.folder / "before"
        if there := self.store_folder.exists():
            shutil.copytree(self.store_folder, before)
        with watched() as steps:
            command()
        if not steps:
            shutil.rmtree(before, ignore_errors=True)
            return True
        shutil.rmtree(self.store_folder)
        if there:
            before.rename(self.store_folder)
        try:
            with watched(at.among(steps)):
                command()
        except Cut:
            self.cuts[name] += 1
            return False
        return True

    # The world

    def choose_features(self, number: int) -> None:
        path = self.folder / f"catalog{number}.yaml"
        if not path.exists():
            path.write_text(
                CATALOG.format(features="\n".join(f"  {feature}" for feature in FEATURES[number]))
            )
            self.catalogs[number] = load_catalog(path)
        self.catalog = self.catalogs[number]
        features = self.catalog.resolved_features().values()
        self.wanted = {feature.name: f"{feature.name}@{feature.fingerprint}" for feature in features}

    def references_of(self, content: int) -> dict[str, str]:
        """Digest of a content's rows by version, for the versions of all catalogs."""
        for version in self.wanted.values():
            if (content, version) not in self.references:
                found = reference(self.folder, content, self.catalog)
                self.references.update({(content, name): digest(rows) for name, rows in found.items()})
        return {version: rows for (known, version), rows in self.references.items() if known == content}

    @initialize(
        contents=st.lists(st.integers(0, 7), min_size=3, max_size=5),
        features=st.integers(0, len(FEATURES) - 1),
        at=CUT_OR_NOT,
    )
    def begin(self, contents: list[int], features: int, at: Place | None) -> None:
        self.choose_features(features)
        for name, content in zip(NAMES, contents, strict=False):
            self.write(name, content)
        if at is not None:
            self.extract(at)
        self.extract(None)

    def write(self, name: str, content: int | None) -> None:
        path = self.folder / "music" / name
        write_content(path, content)
        if content is not GARBAGE:
            self.contents[hashlib.sha256(path.read_bytes()).hexdigest()] = content
        self.files[f"demo/{name}"] = content

    def change_files(self, data: st.DataObject) -> None:
        """One to three random changes."""
        for _ in range(data.draw(st.integers(1, 3))):
            present = [name for name in NAMES if f"demo/{name}" in self.files]
            absent = [name for name in NAMES if name not in present]
            kinds = ["change", "move", "remove"] if present else []
            kind = data.draw(st.sampled_from([*kinds, "add"] if absent else kinds))
            name = data.draw(st.sampled_from(absent if kind == "add" else present))
            self.ran[kind] += 1
            path = self.folder / "music" / name
            if kind in ("add", "change"):
                self.write(name, data.draw(CONTENTS))
            elif kind == "remove":
                path.unlink()
                del self.files[f"demo/{name}"]
            else:
                to = data.draw(st.sampled_from([other for other in NAMES if other != name]))
                target = self.folder / "music" / to
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
                self.files[f"demo/{to}"] = self.files.pop(f"demo/{name}")

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        """Do one of what can be done; rules of their own would be left out of most examples."""
        possible = {
            "forget": bool(self.state or self.pruned()),
            "allow": bool(self.blocked),
            "prune": any(known.status == "gone" for known in self.state.values()),
            "drop": bool(self.droppable()),
            "label": any(known.content is not GARBAGE for known in self.state.values()),
        }
        names = [name for name in ACTIONS if possible.get(name, True)]
        name = data.draw(st.sampled_from(names), label="action")
        getattr(self, name)(data)

    def change(self, data: st.DataObject) -> None:
        self.change_files(data)

    def change_features(self, data: st.DataObject) -> None:
        self.ran["change_features"] += 1
        self.choose_features(data.draw(st.integers(0, len(FEATURES) - 1)))

    # What is visible

    def view(self, store: FeatureStore) -> View:
        labels = store.index.tracks(["track_id", "added_labels"]).set_index("track_id")["added_labels"]
        versions = store.arrays[["feature", "fingerprint"]].drop_duplicates().itertuples(index=False)
        rows: dict[str, set[tuple[str, str]]] = {name: set() for name in store.tracks.index}
        for version in ["@".join(pair) for pair in versions]:
            feature = store[version]
            for track_id in feature.tracks.index:
                rows[track_id].add((version, digest(feature.stored(track_id).tobytes())))
        found = {
            name: (
                str(store.tracks.loc[name, "status"]),
                labels[name] if isinstance(labels[name], str) else None,
                frozenset(known),
            )
            for name, known in rows.items()
        }
        for name in store.failures.index:
            found.setdefault(name, ("failed", None, frozenset()))
        return found

    def expected(self, state: State) -> View:
        return {
            name: (
                known.status,
                known.label if known.content is not GARBAGE else None,
                frozenset((version, self.references[known.content, version]) for version in known.versions)
                if known.content is not GARBAGE
                else frozenset(),
            )
            for name, known in state.items()
            if known.content is not GARBAGE or known.status == "failed"
        }

    def settle(self, candidates: Iterable[State]) -> None:
        """Find what is visible among what may be, and remember it and the snapshots since the last step."""
        store = FeatureStore(self.store_folder)
        view = self.view(store)
        tried = []
        for state in candidates:
            state = self.absorbed(state, view)
            tried.append(self.expected(state))
            if tried[-1] == view:
                self.state = state
                break
        else:
            raise AssertionError(f"visible is {view}\nexpected was one of {tried}")
        self.remember(store, view)

    def absorbed(self, state: State, view: View) -> State:
        """Let failed tracks have features that their part got for the sake of others."""
        done = dict(state)
        for name, known in state.items():
            if known.status == "failed" and name in view and known.content is not GARBAGE:
                seen = frozenset(version for version, _ in view[name][2])
                if known.versions <= seen <= known.versions | set(self.wanted.values()):
                    done[name] = replace(known, versions=seen)
        return done

    def remember(self, store: FeatureStore, view: View) -> None:
        newest = store.snapshot
        self.oldest = store.index.format.oldest_snapshot
        between = max([self.oldest - 1, *self.past]) + 1
        if between < newest:
            self.past[between] = self.view(store.at(between))
        self.past[newest] = view
        self.learn_needles(store, view)

    def learn_needles(self, store: FeatureStore, view: View) -> None:
        """Note a piece of each stored row, to look for in files later."""
        for name, known in self.state.items():
            for version in known.versions if known.content is not GARBAGE else ():
                pieces = self.needles[known.content, version]
                if not pieces and name in view:
                    feature = store[version]
                    part, start, count, _ = feature._span(name)
                    reader = ShardReader(store.location, part, feature.rows.arrays[part])
                    pieces |= {row[40:80] for row in reader.encoded(start, start + count) if len(row) > 200}

    # Extraction

    def predicted(self) -> Iterator[State]:
        """What the index may be after an extraction."""
        files = {name: content for name, content in self.files.items() if name not in self.blocked}
        new = {name: content for name, content in files.items() if name not in self.state}
        pairs: list[list[tuple[str, str] | None]] = []
        for content in {content for content in new.values() if content is not GARBAGE}:
            gone = {
                name: known
                for name, known in self.state.items()
                if name not in files and known.content == content
            }
            news = [name for name in new if new[name] == content]
            choices: list[tuple[str, str] | None] = list(itertools.product(news, gone))
            # Of one whose file broke before it went the size is not known, so its move is not noticed.
            if not gone or any(known.odd for known in gone.values()):
                choices.append(None)
            pairs.append(choices)
        for chosen in itertools.product(*pairs):
            moves = dict(pair for pair in chosen if pair is not None)
            yield {
                name: known
                for name, known in (
                    *((name, self.extracted(name, content, moves)) for name, content in files.items()),
                    *(
                        (name, self.complete(replace(known, status="gone")))
                        for name, known in self.state.items()
                        if name not in files and name not in moves.values()
                    ),
                )
            }

    def complete(self, known: Known) -> Known:
        """With what can be computed from the cached audio."""
        if known.content is GARBAGE or self.wanted["audio"] not in known.versions:
            return known
        return replace(known, versions=known.versions | set(self.wanted.values()))

    def extracted(self, name: str, content: int | None, moves: dict[str, str]) -> Known:
        if name in moves:
            return self.complete(replace(self.state[moves[name]], status="ok", odd=False))
        known = self.state.get(name)
        if content in self.refused and not (
            known and known.content == content and not known.odd and self.has_audio(known)
        ):
            content = GARBAGE
        label = known.label if known else None
        if content is GARBAGE:
            if known and known.content is not GARBAGE:
                return replace(known, status="failed", odd=True)
            return Known("failed", GARBAGE, label=label)
        fresh = Known("ok", content, frozenset(self.wanted.values()), label)
        if known is None or known.content != content or known.odd:
            return fresh
        return self.complete(replace(known, status="ok")) if self.has_audio(known) else fresh

    def has_audio(self, known: Known) -> bool:
        return self.wanted["audio"] in known.versions

    def extract(self, at: Place | None) -> bool:
        self.learn_references()
        candidates = list(self.predicted())
        before = self.state
        self.ran["extract"] += 1
        with jobs_done_here():
            if not self.done("extract", lambda: extract(self.catalog), at):
                self.take_what_is_there(candidates)
                return False
        self.settle(candidates)
        self.join_moved(before)
        return True

    def learn_references(self) -> None:
        for name, content in self.files.items():
            if content is not GARBAGE and name not in self.blocked:
                self.references_of(content)
                self.owners[content].add(name)
        for known in self.state.values():
            if known.content is not GARBAGE:
                self.references_of(known.content)

    def join_moved(self, before: State) -> None:
        """Join names between which rows may have moved: then forgetting one may take the other's past."""
        for old, new in itertools.product(set(before) - set(self.state), set(self.state) - set(before)):
            if before[old].content == self.state[new].content:
                both = self.joined.get(old, frozenset([old])) | self.joined.get(new, frozenset([new]))
                for name in both:
                    self.joined[name] = both

    def extract_again(self, data: st.DataObject) -> None:
        at = data.draw(CUT_OR_NOT)
        self.extract(at)

    def change_and_extract(self, data: st.DataObject) -> None:
        at = data.draw(CUT_OR_NOT)
        self.change_files(data)
        self.extract(at)

    def take_what_is_there(self, wanted: list[State]) -> None:
        """Each track is as it was or as it is to be, and the next run does the rest."""
        before = self.state
        self.doubtful = True
        if not (self.store_folder / "mirstore.json").exists():
            return
        store = FeatureStore(self.store_folder)
        view = self.view(store)
        raw = store.index.tracks(["track_id", "status"])
        statuses = dict(zip(raw["track_id"], raw["status"], strict=True))
        self.state = {}
        for name, status in statuses.items():
            seen = view.get(name, (status, None, frozenset()))
            known = self.recognised(name, seen)
            allowed = [state[name] for state in (before, *wanted) if name in state]
            assert any(
                known.content == other.content and known.status == other.status for other in allowed
            ), f"{name} is {known} in the middle, expected one of {allowed}"
            old = before.get(name)
            odd = (
                known.content is not GARBAGE
                and known.status != "ok"
                and (known.status == "failed" or bool(old and old.odd))
            )
            self.state[name] = replace(known, odd=odd)
        for name, old in before.items():
            moved = any(
                name not in state and self.state.get(new, Known("", -1)).content == old.content
                for state in wanted
                for new in set(state) - set(before)
            )
            assert name in statuses or moved, f"{name} was lost"
        self.remember(store, view)
        self.join_moved(before)

    def recognised(self, name: str, seen: tuple[str, str | None, frozenset[tuple[str, str]]]) -> Known:
        """Which content a track's rows are of; all of one."""
        status, label, rows = seen
        if not rows:
            return Known(status, GARBAGE, label=label or (self.state.get(name) or Known("", 0)).label)
        [content] = {
            content
            for content in {known for known, _ in self.references}
            if all(self.references.get((content, version)) == found for version, found in rows)
        }
        return Known(status, content, frozenset(version for version, _ in rows), label)

    # Upkeep

    def upkeep(self, name: str, at: Place | None, command: Callable[[], Any], *after: State) -> bool:
        """Run a command that may be cut; what is visible is what was, or what is to be."""
        self.ran[name] += 1
        self.doubtful = True
        if not self.done(name, command, at):
            self.settle([self.state, *after])
            return False
        self.settle(after or [self.state])
        return True

    def prune(self, data: st.DataObject) -> None:
        at = data.draw(CUT_OR_NOT)
        left = {name: known for name, known in self.state.items() if known.status != "gone"}
        placed = [known.status for known in self.state.values() if known.content is not GARBAGE]
        collection = None
        if placed.count("gone") > len(placed) / 2:  # a collection that would lose most must be named
            collection = "demo"
            with pytest.raises(StoreError, match="until such a collection is named"):
                removal.prune(self.store_folder)
            self.settle([self.state])
        self.upkeep("prune", at, lambda: removal.prune(self.store_folder, collection=collection), left)

    def pruned(self) -> set[str]:
        """Tracks that only the past has, under no other name either."""
        names = {
            name
            for number, view in self.past.items()
            for name, (_, _, rows) in view.items()
            if rows and number >= self.oldest and not self.may_be_forgotten(name, number)
        }
        return {name for name in names if not self.joined.get(name, {name}) & set(self.state)}

    def forget(self, data: st.DataObject) -> None:
        at = data.draw(CUT_OR_NOT)
        name = data.draw(st.sampled_from(sorted({*self.state, *self.pruned()})))
        before = self.state
        left = {other: known for other, known in self.state.items() if other != name}
        store = FeatureStore(self.store_folder)
        if not self.upkeep("forget", at, lambda: removal.forget(self.store_folder, [name]), left):
            # Once it is written down it happens, if not now then at the next command.
            with writable_index(self.store_folder, "test"):
                pass
            self.settle([left if name_hash(name) in blocked_hashes(store.location) else self.state])
        if name_hash(name) in blocked_hashes(store.location):
            self.blocked.add(name)
            self.learn_refused(store)
            own = before[name].content if name in before else GARBAGE
            assert own is GARBAGE or own in self.refused
            assert all(self.owners[content] & self.blocked_names() for content in self.refused)
            self.forgotten.append((name, store.snapshot))
            self.check_erased()

    def allow(self, data: st.DataObject) -> None:
        self.ran["allow"] += 1
        self.changed = True
        name = data.draw(st.sampled_from(sorted(self.blocked)))
        own = self.contents_under(name)
        removal.allow(self.store_folder, [name])
        self.blocked.remove(name)
        self.learn_refused(FeatureStore(self.store_folder))
        assert not self.refused & own
        self.settle([self.state])

    def learn_refused(self, store: FeatureStore) -> None:
        self.refused = {
            self.contents[content] for content in blocked_contents(store.location) & set(self.contents)
        }

    def blocked_names(self) -> set[str]:
        """Forgotten tracks with the names that moves have joined to them."""
        return {other for name in self.blocked for other in self.joined.get(name, {name})}

    def contents_under(self, name: str) -> set[int]:
        """Contents that are refused because a track was forgotten."""
        found = {
            content
            for erasure in erasures(Folder(self.store_folder))
            for content in erasure.contents.get(name_hash(name), ())
        }
        return {self.contents[content] for content in found & set(self.contents)}

    def forget_unknown(self, _: st.DataObject) -> None:
        self.ran["forget_unknown"] += 1
        self.changed = True
        with pytest.raises(UnknownNameError, match="Nothing was forgotten"):
            removal.forget(self.store_folder, [*self.state, "demo/never.wav"])
        self.settle([self.state])

    def compact(self, data: st.DataObject) -> None:
        at = data.draw(CUT_OR_NOT)

        def command() -> compaction_module.CompactReport:
            return compact(self.store_folder, small_rows=SMALL_ROWS)

        if self.upkeep("compact", at, command):
            again = command()
            assert (again.rewritten, again.emptied, again.damage) == (0, 0, ())

    def gc(self, data: st.DataObject) -> None:
        keep = data.draw(st.sampled_from(["all", "none", "some", "some"]))
        turn = data.draw(st.integers(0, 11))
        grace_s = data.draw(st.sampled_from([0.0, 0.0, 3600.0]))
        at = data.draw(CUT_OR_NOT)
        moments_s = {
            number: float(about["timestamp"]) / 1e3 + 0.0005
            for number, about in Index(self.store_folder).commits()
        }
        before = min(moments_s)
        numbers = sorted(moments_s)
        # The newest at the end of this one's millisecond.
        moment_s = moments_s[numbers[turn % len(numbers)]]
        wanted = max(number for number in numbers if moments_s[number] <= moment_s)
        keep_s = 0.0 if keep == "none" else WEEK_S
        clock = SimpleNamespace(time=lambda: moment_s + WEEK_S) if keep == "some" else time

        def command() -> None:
            with mock.patch.object(index_module, "time", clock):
                collect_garbage(self.store_folder, grace_s=grace_s, keep_s=keep_s)

        done = self.upkeep("gc", at, command, self.state)
        assert before <= self.oldest <= {"all": before, "none": max(self.past), "some": wanted}[keep]
        self.check_some_past(turn)
        if done and grace_s == 0.0:
            store = FeatureStore(self.store_folder)
            named = set()
            # One snapshot of each version of the arrays.
            for number in {
                about.get("arrays_version"): number for number, about in store.index.commits()
            }.values():
                arrays = store.at(number).arrays
                named |= set(zip(arrays["part"], arrays["array"], strict=True))
            parts = self.store_folder / "parts"
            there = {(path.parent.name, path.name) for path in parts.glob("*/*@*")}
            assert there == named
            drafts = [path for path in self.store_folder.rglob(".*") if path.name != ".lock"]
            assert drafts == []

    def droppable(self) -> list[str]:
        """Versions that are not all that a track has."""
        had = [known.versions for known in self.state.values() if known.content is not GARBAGE]
        return sorted(version for version in frozenset().union(*had) if {version} not in had)

    def drop(self, data: st.DataObject) -> None:
        at = data.draw(CUT_OR_NOT)
        version = data.draw(st.sampled_from(self.droppable()))
        after = {
            name: replace(known, versions=known.versions - {version}) for name, known in self.state.items()
        }
        fingerprint = version.partition("@")[2]
        if version in self.wanted.values():
            with pytest.raises(StoreError, match="--force"):
                removal.drop(self.store_folder, version, wanted=[fingerprint])
            self.settle([self.state])

        def command() -> None:
            removal.drop(self.store_folder, version, wanted=[fingerprint], force=True)

        self.upkeep("drop", at, command, after)

    def label(self, data: st.DataObject) -> None:
        mood, at = data.draw(st.sampled_from(["calm", "wild"])), data.draw(CUT_OR_NOT)
        stored = sorted(name for name, known in self.state.items() if known.content is not GARBAGE)
        name = data.draw(st.sampled_from(stored))
        text = json.dumps({"mood": mood})

        def add() -> None:
            with writable_index(self.store_folder, "test") as index:
                rows = index.tracks()
                [row] = track_rows(rows[rows["track_id"] == name])
                index.commit(updated=[replace(row, added_labels=text)], provenance={"command": "test"})

        self.upkeep("label", at, add, {**self.state, name: replace(self.state[name], label=text)})

    # What holds at all times

    def open_reader(self, _: st.DataObject) -> None:
        self.ran["open_reader"] += 1
        store = FeatureStore(self.store_folder)
        self.reader = store, self.view(store)

    @invariant()
    def all_is_well(self) -> None:
        if self.changed:
            self.check_reader()
        if self.doubtful and (self.store_folder / "mirstore.json").exists():
            report = verify(self.store_folder)
            assert report.is_sound, report.problems.to_dict(orient="records")
        self.changed = self.doubtful = False

    def check_reader(self) -> None:
        """What was opened long ago is read as it was then."""
        if self.reader is None:
            return
        store, seen = self.reader
        if store.snapshot < self.oldest:
            self.reader = None
            return
        for name, (_, _, rows) in seen.items():
            for version, found in rows:
                if not self.may_be_forgotten(name, store.snapshot):
                    assert digest(store[version].stored(name).tobytes()) == found
                    continue
                try:
                    assert digest(store[version].stored(name).tobytes()) == found
                except StoreDamagedError:
                    raise
                except StoreError as error:
                    told = str(error)
                    assert "erased" in told

    def may_be_forgotten(self, name: str, snapshot: int) -> bool:
        return any(
            snapshot <= until and name in self.joined.get(other, {other}) for other, until in self.forgotten
        )

    def readable(self) -> list[int]:
        return [number for number in sorted(self.past) if number >= self.oldest]

    def travel(self, data: st.DataObject) -> None:
        turns = data.draw(st.lists(st.integers(0, 23), min_size=1, max_size=3, unique=True))
        self.ran["travel"] += 1
        for turn in turns:
            self.check_some_past(turn)

    def check_some_past(self, turn: int) -> None:
        """Check one of the snapshots that can be read, and of those that cannot the newest."""
        numbers = self.readable()
        self.check_past(numbers[turn % len(numbers)])
        for number in [number for number in sorted(self.past) if number < self.oldest][-1:]:
            self.check_past(number)

    def check_past(self, number: int) -> None:
        self.ran["past read" if number >= self.oldest else "past refused"] += 1
        store = FeatureStore(self.store_folder)
        if number < self.oldest:
            with pytest.raises(StoreError, match="can no longer be read"):
                store.at(number)
            return
        seen = self.view(store.at(number))
        for name, known in self.past[number].items():
            if not self.may_be_forgotten(name, number):
                assert seen.get(name) == known, f"{name} of snapshot {number}"
            elif name in seen and known[2]:
                assert seen[name] == known
                assert len(self.joined.get(name, ())) > 1, f"{name} of snapshot {number} was forgotten"
        assert set(seen) <= set(self.past[number])

    def check_erased(self) -> None:
        """Of what only forgotten tracks ever were, no byte is in any file."""
        stored = [path.read_bytes() for path in (self.store_folder / "parts").rglob("*") if path.is_file()]
        for content, names in self.owners.items():
            if not names <= self.blocked:
                continue
            for (known, version), pieces in self.needles.items():
                for piece in pieces if known == content else ():
                    assert not any(piece in file for file in stored), f"{version} of {names} is still there"


def test_store_life(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Life(StoreLife):
        pass

    Life.scheduler, Life.ran, Life.cuts = scheduler, Counter(), Counter()
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no cut here is one of the power
    a_name = SimpleNamespace(uuid4=lambda: uuid.UUID(int=Life.names.getrandbits(128)))
    monkeypatch.setattr(parts_module, "uuid", a_name)
    monkeypatch.setattr(erasures_module, "uuid", a_name)
    # So low that the little that a life has is past them.
    monkeypatch.setattr(erasures_module, "DONE_FILES_KEPT", 1)
    monkeypatch.setattr(index_module, "FILES_BEFORE_COMPACTION", 5)
    monkeypatch.setattr(compaction_module, "TARGET_ROWS", 4 * SMALL_ROWS)
    monkeypatch.setattr(compaction_module, "PARTS_A_COMMIT", 1)
    usual = EXAMPLES == USUAL_EXAMPLES
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            # Making a failure short takes minutes.
            phases=[Phase.generate] if usual else list(Phase),
        ),
    )
    if usual:  # or the test has become thin
        assert min(Life.ran[name] for name in EVERYTHING) >= LEAST_RUNS, Life.ran
        assert min(Life.cuts[name] for name in COMMANDS) >= LEAST_CUTS, Life.cuts
        assert Life.cuts.total() >= LEAST_CUTS_IN_ALL, Life.cuts
