"""The index over the parts: two Delta Lake tables, ``tracks`` and ``arrays``.

A job's arrays are committed before the tracks that point to them, so a track is visible only with
its ``tracks`` row and a feature of it only with its part's ``arrays`` row: never half. Both commits
are Delta's own atomic ones. Each commit of ``tracks`` is a snapshot, and names the version of
``arrays`` that belongs to it.
"""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any

import pandas as pd
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Field, write_deltalake
from deltalake.exceptions import DeltaError
from deltalake.schema import PrimitiveType

from features.framing import Grid
from pipeline.errors import (
    StoreDamagedError,
    StoreError,
    StoreFormatError,
    UnknownNameError,
)
from pipeline.store.erasures import complete_erasures
from pipeline.store.format_file import FORMAT, StoreFormat, read_format
from pipeline.store.lineage import command_line, counted, provenance
from pipeline.store.location import FORMAT_FILE, Location, Lock, location_of
from pipeline.store.places import Place, catalog_at
from pipeline.store.records import ArrayRow, TrackRow
from pipeline.store.tables import (
    ARRAYS_SCHEMA,
    LOG,
    TRACKS_SCHEMA,
    committing,
    log_entry,
    pandas_frame,
    shortened,
    table_frame,
    table_of,
)

# Small commits leave small files; past this many a reader gains from having them merged.
FILES_BEFORE_COMPACTION = 32
COMMITS_LOOKED_AT = 100
_OWN_NAMES = {FORMAT_FILE, "arrays", "erased", "lock.json", "models", "parts", "tracks", "lost+found"}


class Index:
    """Both tables of one store.

    Parameters
    ----------
    place
        Of an existing store.
    snapshot
        Number of the commit to read; None is the newest.

    Raises
    ------
    StoreMissingError, StoreFormatError, StoreDamagedError
        If it cannot be opened.
    UnknownNameError
        If there is no such snapshot.
    StoreError
        If ``mirstore gc`` has removed what the snapshot needs.
    """

    def __init__(self, place: "str | os.PathLike[str] | Location", snapshot: int | None = None) -> None:
        self.location = location_of(place)
        self.format = read_format(self.location)
        # Whoever writes sets this; every commit looks whether it still holds.
        self.lock: Lock | None = None
        self.catalog_hash = ""
        try:
            self._tracks = self._open("tracks")
            if snapshot is not None and snapshot != self._tracks.version():
                self._check_snapshot(snapshot)
                self._tracks.load_as_version(snapshot)
            # As of the tracks: arrays whose tracks were never committed (a kill in between) do not count.
            self._arrays = self._open("arrays", self._arrays_version())
        except (DeltaError, OSError) as error:
            raise StoreDamagedError(
                f"{self.location}: the index cannot be opened ({shortened(error)}). Restore it from a backup."
            ) from error

    def _open(self, name: str, version: int | None = None) -> DeltaTable:
        url, options = self.location.table(name)
        return DeltaTable(url, version=version, storage_options=options)

    def _check_snapshot(self, snapshot: int) -> None:
        newest = self.version
        if not 0 <= snapshot <= newest:
            raise UnknownNameError(
                f"{self.location} has no snapshot {snapshot}: they go from {self.format.oldest_snapshot} "
                f"to {newest}. `mirstore snapshots` lists them."
            )
        if snapshot < self.format.oldest_snapshot:
            raise StoreError(
                f"snapshot {snapshot} can no longer be read: `mirstore gc` has kept those from "
                f"{self.format.oldest_snapshot} on. Name one of them."
            )

    @property
    def grid(self) -> Grid:
        """Sample rate, hop and chunk length of every array."""
        return self.format.grid

    @property
    def version(self) -> int:
        """Version of the ``tracks`` table: the snapshot's number."""
        return int(self._tracks.version())

    @property
    def arrays_version(self) -> int:
        """Version of the ``arrays`` table that belongs to this snapshot."""
        return int(self._arrays.version())

    def commit_info(self, snapshot: int) -> dict[str, Any]:
        """Return what a commit of the ``tracks`` table says of itself.

        Raises
        ------
        UnknownNameError
            If its log entry is gone.
        """
        return log_entry(self.location, "tracks", snapshot)

    def last_commit(self) -> dict[str, Any]:
        """Return what this snapshot's commit says of itself."""
        return self.commit_info(self.version)

    def commits(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Return every readable snapshot up to this one with what its commit says, newest first."""
        for number in range(self.version, self.format.oldest_snapshot - 1, -1):
            try:
                yield number, self.commit_info(number)
            except UnknownNameError:
                return

    def last_extracted(self, feature: str) -> str | None:
        """Return the version of a feature that the last extraction asked for, as far as the newest commits say."""
        for _, about in itertools.islice(self.commits(), COMMITS_LOOKED_AT):
            versions = json.loads(about.get("features", "{}"))
            if feature in versions:
                return str(versions[feature])
        return None

    def _arrays_version(self) -> int:
        """Version of ``arrays`` that this commit of ``tracks`` belongs to.

        Commits made by other tools (an OPTIMIZE or VACUUM of the table) do not say, so the last that does counts.
        """
        for number in range(self.version, -1, -1):
            about = self.commit_info(number)
            if "arrays_version" in about:
                return int(about["arrays_version"])
        return 0

    def arrays_since(self, snapshot: int) -> pd.DataFrame:
        """Return part and array of all that any snapshot from this number on names.

        What a commit added and a later one took away is among it: arrays only grow between two versions that
        take away, so of those that snapshots name, the last before each of these are enough.
        """
        named = sorted(self._named_arrays_versions(snapshot))
        wanted = {named[0], named[-1]}
        for version in range(named[0] + 1, named[-1] + 1):
            if log_entry(self.location, "arrays", version).get("operation") not in ("WRITE", "OPTIMIZE"):
                wanted.add(max(other for other in named if other < version))
        states = [self.arrays(["part", "array"])]
        for version in sorted(wanted - {self.arrays_version}):
            # What another tool vacuumed cannot be read, and then neither can the snapshots that name it.
            with contextlib.suppress(DeltaError, OSError, pa.ArrowException):
                state = self._open("arrays", version)
                states.append(table_frame(self.location, "arrays", state, ARRAYS_SCHEMA, ["part", "array"]))
        return pd.concat(states, ignore_index=True).drop_duplicates(ignore_index=True)

    def _named_arrays_versions(self, snapshot: int) -> set[int]:
        """Versions of ``arrays`` that the snapshots from a number on belong to."""
        found = {Index(self.location, snapshot).arrays_version, self.arrays_version}
        for number in range(snapshot + 1, self.version):
            about = self.commit_info(number)
            if "arrays_version" in about:
                found.add(int(about["arrays_version"]))
        return found

    def recover(self) -> None:
        """Undo a commit that was cut short between its two tables; to be called by whoever holds the lock.

        The part it was about is nobody's from then on, and `collect_garbage` removes it. A store of an
        older format gets what it lacks.
        """
        with self._committing():
            newest = self._open("arrays")
            if newest.version() != self._arrays.version():
                newest.restore(self._arrays.version())
                self._arrays = newest
                self.commit(provenance=provenance("recovery"))
        if self.format.version < FORMAT:
            self._upgrade()
        with suppress(StoreDamagedError):  # forget tells of it; nobody else can mend it or needs it mended
            complete_erasures(self)

    def _upgrade(self) -> None:
        with self._committing():
            have = {field.name for field in self._tracks.schema().fields}
            lacking = [field for field in TRACKS_SCHEMA if field.name not in have]
            if lacking:
                self._tracks.alter.add_columns(
                    [Field(field.name, PrimitiveType("string"), nullable=True) for field in lacking],
                    commit_properties=self._about(provenance("upgrade"), counts="{}"),
                )
        self.format = StoreFormat(FORMAT, self.format.grid, self.format.oldest_snapshot)
        self.format.write(self.location)

    def oldest_within(self, seconds: float) -> int:
        """Return the number of the oldest snapshot that was the newest at some time within so many seconds."""
        since_ms = time.time() * 1000.0 - seconds * 1000.0
        for number, about in self.commits():
            if float(about["timestamp"]) <= since_ms:
                return number
        return self.format.oldest_snapshot

    def vacuum(self, keep_s: float, *, kept: int) -> None:
        """Remove files of the tables that only snapshots name that were superseded that long ago.

        Parameters
        ----------
        keep_s
            Files superseded since then stay.
        kept
            The oldest snapshot that is to stay readable.
        """
        hours = math.ceil(keep_s / 3600.0)
        with self._committing():
            for name, table in (("arrays", self._arrays), ("tracks", self._tracks)):
                there = {stored.key for stored in self.location.walk(name)}
                superseded = table.vacuum(hours, dry_run=True, enforce_retention_duration=False)
                # The log goes on listing files that an earlier call has removed.
                if there.isdisjoint(f"{name}/{file}" for file in superseded):
                    continue
                self.keep_from(kept)
                about = self._about(provenance(command_line("gc")), "{}") if table is self._tracks else None
                table.vacuum(hours, dry_run=False, enforce_retention_duration=False, commit_properties=about)
                if table is self._arrays:  # its new version belongs to a commit of `tracks`, as any
                    self.commit(provenance=provenance(command_line("gc")))

    def keep_from(self, snapshot: int) -> None:
        """Say that snapshots before this one can no longer be read."""
        if snapshot > self.format.oldest_snapshot:
            self.format = StoreFormat(self.format.version, self.format.grid, snapshot)
            self.format.write(self.location)

    @classmethod
    def create(cls, place: "str | os.PathLike[str] | Location", grid: Grid) -> "Index":
        """Make an empty store, or complete one whose making was cut short.

        Raises
        ------
        StoreDamagedError
            If there are tracks, but no format file to say on which grid.
        StoreError
            If the folder is used for something else.
        """
        location = location_of(place)
        location.prepare()
        # Hidden files are left out: our own drafts, the lock, and what file managers drop.
        names = {name for name in location.names("") if not name.startswith((".", "lock-"))}
        foreign = sorted(names - _OWN_NAMES)
        if foreign:
            raise StoreError(
                f"{location} is no store and holds other files, such as {foreign[0]!r}. Name an empty folder."
            )
        if location.exists(f"tracks/{LOG}/{1:020}.json"):
            raise StoreDamagedError(
                f"{location} has tracks but no {FORMAT_FILE}. Restore that file from a backup."
            )
        configuration = {
            "delta.logRetentionDuration": "interval 36500 days",
            "delta.enableExpiredLogCleanup": "false",
            # The log would hold the first and the last track's name of each file, after they were forgotten too.
            "delta.dataSkippingNumIndexedCols": "0",
        }
        for name, schema in (("tracks", TRACKS_SCHEMA), ("arrays", ARRAYS_SCHEMA)):
            url, options = location.table(name)
            with committing(location):
                DeltaTable.create(
                    url,
                    schema=schema,
                    mode="ignore",
                    configuration=configuration,
                    storage_options=options,
                    commit_properties=CommitProperties(custom_metadata=provenance(command_line("extract"))),
                )
        StoreFormat(FORMAT, grid).write(location)
        return cls(location)

    @classmethod
    def open_or_create(cls, place: "str | os.PathLike[str] | Location", grid: Grid) -> "Index":
        """Open a store for writing on `grid`.

        Raises
        ------
        StoreFormatError
            If it has another grid.
        """
        location = location_of(place)
        if not location.exists(FORMAT_FILE):
            return cls.create(location, grid)
        index = cls(location)
        if index.grid != grid:
            differing = [
                f"{column.name} {getattr(index.grid, column.name)} (catalog: {getattr(grid, column.name)})"
                for column in fields(Grid)
                if getattr(index.grid, column.name) != getattr(grid, column.name)
            ]
            raise StoreFormatError(
                f"{location} was made with {', '.join(differing)}, and a store keeps one grid. "
                "Name another store in the catalog, or change the catalog back."
            )
        return index

    @classmethod
    def open_or_none(cls, place: "str | os.PathLike[str] | Location", grid: Grid) -> "Index | None":
        """Open a store for reading what is to be done on it; None where there is none yet."""
        location = location_of(place)
        return cls.open_or_create(location, grid) if location.exists(FORMAT_FILE) else None

    @staticmethod
    def no_tracks() -> pd.DataFrame:
        """Return the ``tracks`` table of a store that is not there yet."""
        return pandas_frame(TRACKS_SCHEMA.empty_table())

    @staticmethod
    def no_arrays() -> pd.DataFrame:
        """Return the ``arrays`` table of a store that is not there yet."""
        return pandas_frame(ARRAYS_SCHEMA.empty_table())

    def tracks(
        self, columns: Sequence[str] | None = None, *, parts: Collection[str] | None = None
    ) -> pd.DataFrame:
        """Every row of the ``tracks`` table, or those of some parts."""
        names = list(columns or TRACKS_SCHEMA.names)
        with self._reading():
            return table_frame(self.location, "tracks", self._tracks, TRACKS_SCHEMA, names, parts)

    def arrays(
        self, columns: Sequence[str] | None = None, *, parts: Collection[str] | None = None
    ) -> pd.DataFrame:
        """Every row of the ``arrays`` table, or those of some parts."""
        names = list(columns or ARRAYS_SCHEMA.names)
        with self._reading():
            return table_frame(self.location, "arrays", self._arrays, ARRAYS_SCHEMA, names, parts)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (DeltaError, OSError, pa.ArrowException) as error:
            raise StoreDamagedError(
                f"{self.location}, snapshot {self.version}: the index cannot be read "
                f"({shortened(error)}). Name a newer snapshot, or restore it from a backup."
            ) from error

    def commit(
        self,
        *,
        arrays: Sequence[ArrayRow] = (),
        added: Sequence[TrackRow] = (),
        updated: Sequence[TrackRow] = (),
        removed: Iterable[str] = (),
        dropped: str | None = None,
        provenance: Mapping[str, str],
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """Make a job's results visible: its arrays first, then its tracks.

        Parameters
        ----------
        arrays
            Complete arrays.
        added
            Rows of tracks the table does not have.
        updated
            Rows that replace those of the same `track_id`, or are new.
        removed
            Identifiers whose rows go (a moved file's old one), in the same commit as `updated`.
        dropped
            Which rows of ``arrays`` go, as an SQL predicate on its columns.
        provenance
            Written into the commit, with the counts: who, command, catalog hash, versions.
        counts
            What was done to tracks, where that says more than how many rows were added, updated and removed.

        Raises
        ------
        StoreWriteError
            If the file system refuses.
        StoreLockedError
            If the lock was lost.
        """
        removed = list(removed)
        with self._committing():
            if arrays:
                write_deltalake(
                    self._arrays,
                    table_of(arrays, ARRAYS_SCHEMA),
                    mode="append",
                    commit_properties=CommitProperties(custom_metadata=dict(provenance)),
                )
            n_dropped = 0
            if dropped is not None:
                about = CommitProperties(custom_metadata=dict(provenance))
                n_dropped = self._arrays.delete(dropped, commit_properties=about)["num_deleted_rows"] or 0
            if counts is None:
                counts = {"added": len(added), "updated": len(updated), "removed": len(removed)}
            told = counted(**counts, arrays=len(arrays), dropped=n_dropped)
            # Each commit of `tracks` names the `arrays` it belongs to; one that only brings arrays
            # is an empty append, so that every commit has a number of its own.
            properties = self._about(provenance, told)
            if updated or removed:
                self._merge([*updated, *added], removed, properties)
            else:
                write_deltalake(
                    self._tracks, table_of(added, TRACKS_SCHEMA), mode="append", commit_properties=properties
                )

    def _about(self, provenance: Mapping[str, str], counts: str) -> CommitProperties:
        return CommitProperties(
            custom_metadata={
                **({"catalog": self.catalog_hash} if self.catalog_hash else {}),
                **provenance,
                "counts": counts,
                "arrays_version": str(self._arrays.version()),
            }
        )

    def _merge(self, updated: Sequence[TrackRow], removed: list[str], about: CommitProperties) -> None:
        gone = [TrackRow(track_id, "", "", 0, 0, "removed") for track_id in removed]
        (
            self._tracks.merge(
                table_of([*updated, *gone], TRACKS_SCHEMA),
                predicate="target.track_id = source.track_id",
                source_alias="source",
                target_alias="target",
                commit_properties=about,
            )
            .when_matched_delete("source.status = 'removed'")
            .when_matched_update_all()
            .when_not_matched_insert_all("source.status <> 'removed'")
            .execute()
        )

    def compact(self, provenance: Mapping[str, str]) -> None:
        """Merge small files of the tables when there are many; readers are not disturbed."""
        with self._committing():
            if len(self._arrays.file_uris()) > FILES_BEFORE_COMPACTION:
                self._arrays.optimize.compact()
                self.commit(provenance=provenance)
            if len(self._tracks.file_uris()) > FILES_BEFORE_COMPACTION:
                self._tracks.optimize.compact(commit_properties=self._about(provenance, "{}"))

    @contextmanager
    def _committing(self) -> Iterator[None]:
        if self.lock is not None:
            self.lock.check()
        with committing(self.location):
            yield


@contextmanager
def writable_index(place: Place, command: str) -> Iterator[Index]:
    """Index of an existing store, held for writing and whole.

    Parameters
    ----------
    place
        Of the store, or a catalog: its hash is then recorded with every commit.
    command
        For who finds the store locked.

    Raises
    ------
    StoreMissingError, StoreFormatError, StoreDamagedError
        If it cannot be opened.
    StoreLockedError
        If another command is writing to it.
    """
    catalog = catalog_at(place)
    location = location_of(place if catalog is None else catalog.store)
    read_format(location)  # refuses what is no store before anything is written
    with location.lock(command) as lock:
        index = Index(location)
        index.lock = lock
        index.catalog_hash = catalog.hash if catalog else ""
        index.recover()
        yield index
