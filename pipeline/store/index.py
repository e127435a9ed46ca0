"""The index over the parts: two Delta Lake tables, ``tracks`` and ``arrays``.

A job's arrays are committed before the tracks that point to them, so a track is visible only with
its ``tracks`` row and a feature of it only with its part's ``arrays`` row: never half. Both commits
are Delta's own atomic ones.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from features.errors import FeatureInputError
from features.framing import Grid
from pipeline.errors import (
    StoreDamagedError,
    StoreError,
    StoreFormatError,
    StoreMissingError,
    StoreWriteError,
)
from pipeline.store.files import REFUSALS, replaced, writing
from pipeline.store.records import ArrayRow, TrackRow

FORMAT = 1
FORMAT_FILE = "mirstore.json"
# Small commits leave small files; past this many a reader gains from having them merged.
FILES_BEFORE_COMPACTION = 32
_OWN_NAMES = {FORMAT_FILE, "arrays", "models", "parts", "tracks", "lost+found"}


def _schema(row: type) -> pa.Schema:
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    columns = []
    for column in fields(row):
        kind: Any = column.type
        options = getattr(kind, "__args__", (kind,))
        columns.append(pa.field(column.name, kinds[options[0]], nullable=type(None) in options))
    return pa.schema(columns)


TRACKS_SCHEMA = _schema(TrackRow)
ARRAYS_SCHEMA = _schema(ArrayRow)


def _table(rows: Sequence[TrackRow] | Sequence[ArrayRow], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)


def read_format(store: Path) -> Grid:
    """Return a store's grid, after checking that this mirstore can read it.

    Raises
    ------
    StoreMissingError
        If there is no store.
    StoreFormatError
        If a newer mirstore wrote it.
    StoreDamagedError
        If its format file cannot be understood.
    """
    path = store / FORMAT_FILE
    try:
        content = json.loads(path.read_bytes())
        version = int(content["format"])
        if version > FORMAT:
            raise StoreFormatError(
                f"{store} has format {version}, this mirstore reads up to {FORMAT}. Install a newer mirstore."
            )
        return Grid(**content["grid"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreMissingError(
            f"{store} holds no store. Run `mirstore extract` or correct the path."
        ) from error
    except (ValueError, KeyError, TypeError, FeatureInputError) as error:
        raise StoreDamagedError(
            f"{path}: not a store's format file ({error}). Restore it from a backup."
        ) from error


class Index:
    """Both tables of one store.

    Parameters
    ----------
    store
        Folder of an existing store.

    Raises
    ------
    StoreMissingError, StoreFormatError, StoreDamagedError
        If it cannot be opened.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self.grid = read_format(store)
        try:
            self._tracks = DeltaTable(store / "tracks")
            # As of the tracks: arrays whose tracks were never committed (a kill in between) do not count.
            self._arrays = DeltaTable(store / "arrays", version=self._arrays_version())
        except (DeltaError, OSError) as error:
            raise StoreDamagedError(f"{store}: the index cannot be opened ({error}).") from error

    def _arrays_version(self) -> int:
        """Version of ``arrays`` that the newest commit of ``tracks`` belongs to.

        Commits made by other tools (an OPTIMIZE or VACUUM of the table) do not say, so the newest that does counts.
        """
        for limit in (1, 100, None):
            for commit in self._tracks.history(limit):
                if "arrays_version" in commit:
                    return int(commit["arrays_version"])
        return 0

    def recover(self) -> None:
        """Undo a commit that was cut short between its two tables; to be called by whoever holds the lock.

        The part it was about is nobody's from then on, and `collect_garbage` removes it.
        """
        with _committing(self.store):
            newest = DeltaTable(self.store / "arrays")
            if newest.version() != self._arrays.version():
                newest.restore(self._arrays.version())
                self._arrays = newest
                self.commit(provenance={"command": "recovery"})

    @classmethod
    def create(cls, store: Path, grid: Grid) -> "Index":
        """Make an empty store, or complete one whose making was cut short.

        Raises
        ------
        StoreDamagedError
            If there are tracks, but no format file to say on which grid.
        StoreError
            If the folder is used for something else.
        """
        with writing(store):
            store.mkdir(parents=True, exist_ok=True)
            # Hidden files are left out: our own drafts, the lock, and what file managers drop.
            names = {path.name for path in store.iterdir() if not path.name.startswith(".")}
            foreign = sorted(names - _OWN_NAMES)
        if foreign:
            raise StoreError(
                f"{store} is no store and holds other files, such as {foreign[0]!r}. Name an empty folder."
            )
        if DeltaTable.is_deltatable(str(store / "tracks")) and DeltaTable(store / "tracks").version() > 0:
            raise StoreDamagedError(
                f"{store} has tracks but no {FORMAT_FILE}. Restore that file from a backup."
            )
        keep_log = {
            "delta.logRetentionDuration": "interval 36500 days",
            "delta.enableExpiredLogCleanup": "false",
        }
        for name, schema in (("tracks", TRACKS_SCHEMA), ("arrays", ARRAYS_SCHEMA)):
            with _committing(store):
                DeltaTable.create(store / name, schema=schema, mode="ignore", configuration=keep_log)
        content = {"format": FORMAT, "grid": asdict(grid)}
        replaced(store / FORMAT_FILE, json.dumps(content, indent=1).encode())
        return cls(store)

    @classmethod
    def open_or_create(cls, store: Path, grid: Grid) -> "Index":
        """Open a store for writing on `grid`.

        Raises
        ------
        StoreFormatError
            If it has another grid.
        """
        if not (store / FORMAT_FILE).exists():
            return cls.create(store, grid)
        index = cls(store)
        if index.grid != grid:
            differing = [
                f"{column.name} {getattr(index.grid, column.name)} (catalog: {getattr(grid, column.name)})"
                for column in fields(Grid)
                if getattr(index.grid, column.name) != getattr(grid, column.name)
            ]
            raise StoreFormatError(
                f"{store} was made with {', '.join(differing)}, and a store keeps one grid. "
                "Name another store in the catalog, or change the catalog back."
            )
        return index

    @classmethod
    def open_or_none(cls, store: Path, grid: Grid) -> "Index | None":
        """Open a store for reading what is to be done on it; None where there is none yet."""
        return cls.open_or_create(store, grid) if (store / FORMAT_FILE).exists() else None

    @staticmethod
    def no_tracks() -> pd.DataFrame:
        """Return the ``tracks`` table of a store that is not there yet."""
        return _pandas(TRACKS_SCHEMA.empty_table())

    @staticmethod
    def no_arrays() -> pd.DataFrame:
        """Return the ``arrays`` table of a store that is not there yet."""
        return _pandas(ARRAYS_SCHEMA.empty_table())

    @property
    def version(self) -> int:
        """Version of the ``tracks`` table: the snapshot's number."""
        return int(self._tracks.version())

    def tracks(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Every row of the ``tracks`` table."""
        return _frame(self._tracks, columns)

    def arrays(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Every row of the ``arrays`` table."""
        return _frame(self._arrays, columns)

    def last_commit(self) -> dict[str, Any]:
        """What the newest commit of the ``tracks`` table says of itself."""
        return dict(self._tracks.history(1)[0])

    def commit(
        self,
        *,
        arrays: Sequence[ArrayRow] = (),
        added: Sequence[TrackRow] = (),
        updated: Sequence[TrackRow] = (),
        removed: Iterable[str] = (),
        provenance: Mapping[str, str],
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
        provenance
            Written into the commit: command, catalog hash, versions.

        Raises
        ------
        StoreWriteError
            If the file system refuses.
        """
        with _committing(self.store):
            if arrays:
                about = CommitProperties(custom_metadata=dict(provenance))
                write_deltalake(
                    self._arrays, _table(arrays, ARRAYS_SCHEMA), mode="append", commit_properties=about
                )
            # Each commit of `tracks` names the `arrays` it belongs to; one that only brings arrays
            # is an empty append, so that every commit has a number of its own.
            about = CommitProperties(
                custom_metadata={**provenance, "arrays_version": str(self._arrays.version())}
            )
            if updated or removed:
                self._merge(updated, list(removed), about)
            if added or not (updated or removed):
                write_deltalake(
                    self._tracks, _table(added, TRACKS_SCHEMA), mode="append", commit_properties=about
                )

    def _merge(self, updated: Sequence[TrackRow], removed: list[str], about: CommitProperties) -> None:
        gone = [TrackRow(track_id, "", "", 0, 0, "removed") for track_id in removed]
        (
            self._tracks.merge(
                _table([*updated, *gone], TRACKS_SCHEMA),
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
        with _committing(self.store):
            if len(self._arrays.file_uris()) > FILES_BEFORE_COMPACTION:
                self._arrays.optimize.compact()
                self.commit(provenance=provenance)
            if len(self._tracks.file_uris()) > FILES_BEFORE_COMPACTION:
                about = {**provenance, "arrays_version": str(self._arrays.version())}
                self._tracks.optimize.compact(commit_properties=CommitProperties(custom_metadata=about))


def _frame(table: DeltaTable, columns: Sequence[str] | None) -> pd.DataFrame:
    return _pandas(table.to_pyarrow_table(columns=list(columns) if columns else None))


def _pandas(table: pa.Table) -> pd.DataFrame:
    """Return a frame whose whole numbers stay whole where some are missing."""
    # A table without chunks has columns that pandas cannot join.
    whole = table if table.num_rows else table.schema.empty_table()
    frame: pd.DataFrame = whole.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return frame


@contextmanager
def _committing(store: Path) -> Iterator[None]:
    """Turn a refused commit into one line; delta-rs wraps the system's errors in its own."""
    try:
        with writing(store):
            yield
    except (DeltaError, OSError) as error:
        text = str(error)
        for number, words in REFUSALS.items():
            if f"os error {number}" in text or os.strerror(number) in text:
                raise StoreWriteError(f"cannot commit to {store}: {words}.") from error
        raise StoreWriteError(f"cannot commit to {store}: {' '.join(text.split())}") from error
