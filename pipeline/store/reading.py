"""Reading the store: tracks as a DataFrame, features as arrays with seconds on their axes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.framing import Grid
from pipeline.errors import StoreDamagedError, StoreError, UnknownNameError, did_you_mean
from pipeline.store.erasures import erased_spans, unerased
from pipeline.store.index import Index
from pipeline.store.lineage import commits_table
from pipeline.store.location import Location, location_of
from pipeline.store.parts import PARTS, part_key
from pipeline.store.places import Place, catalog_at
from pipeline.store.stored_feature import StoredFeature
from pipeline.store.track_table import LABEL_COLUMNS, OF_FAILURES, has_any, queried, with_labels

if TYPE_CHECKING:
    import xarray as xr

# What finding a track's rows needs: little, so that a store of a million tracks opens in a second.
_SPAN_COLUMNS = ["track_id", "part", "row_start", "n_chunks", "n_samples"]


@dataclass(frozen=True, slots=True)
class Spans:
    """Where the rows of tracks lie, sorted by `track_id`.

    Parameters
    ----------
    track_ids
        Identifiers.
    part
        (track,) names of parts.
    row_start, n_chunks, n_samples
        (track,) int64.
    """

    track_ids: "pd.Index[str]"
    part: NDArray[np.object_]
    row_start: NDArray[np.int64]
    n_chunks: NDArray[np.int64]
    n_samples: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.track_ids)

    def taken(self, where: NDArray[Any]) -> "Spans":
        """Return some of them, by a mask or by numbers."""
        return Spans(
            self.track_ids[where],
            self.part[where],
            self.row_start[where],
            self.n_chunks[where],
            self.n_samples[where],
        )


class FeatureStore:
    """A store, opened for reading at one snapshot.

    Parameters
    ----------
    place
        A store's folder or URL, or a catalog (``.yaml``), which also chooses the version of each feature.
    snapshot
        Number of the commit to read; None is the newest at this moment. Later commits change nothing
        about an open store.

    Raises
    ------
    StoreMissingError, StoreFormatError, StoreDamagedError, StoreAccessError
        If it cannot be opened.
    CatalogError
        If `place` is a catalog that is wrong.
    UnknownNameError
        If there is no such snapshot.

    Examples
    --------
    >>> store = FeatureStore("catalog.yaml")  # doctest: +SKIP
    >>> store.tracks.query("duration_s > 180")  # doctest: +SKIP
    >>> store["logmel"].track("demo/Apocalypse Song.ogg")  # doctest: +SKIP
    """

    def __init__(self, place: Place, *, snapshot: int | None = None) -> None:
        self._wanted: dict[str, str] = {}
        if (catalog := catalog_at(place)) is not None:
            self._wanted = {name: f.fingerprint for name, f in catalog.resolved_features().items()}
        self.location = location_of(place if catalog is None else catalog.store)
        self.index = Index(self.location, snapshot)
        self._only: pd.Index[str] | None = None

    @property
    def grid(self) -> Grid:
        """Sample rate, hop and chunk length of every array."""
        return self.index.grid

    @property
    def snapshot(self) -> int:
        """Number of the commit that is read."""
        return self.index.version

    def at(self, snapshot: int) -> "FeatureStore":
        """Return the store as it was at a snapshot.

        Raises
        ------
        UnknownNameError
            If there is no such snapshot.
        StoreError
            If ``mirstore gc`` has removed what it needs.
        """
        past = object.__new__(FeatureStore)
        past._wanted, past._only, past.location = self._wanted, self._only, self.location
        past.index = Index(self.location, snapshot)
        return past

    @property
    def snapshots(self) -> pd.DataFrame:
        """Every readable snapshot up to this one, newest first: when, by which command, by whom, what changed.

        Returns
        -------
        DataFrame
            `snapshot`, `committed` (UTC), `command`, `by`, `catalog`, `counts`, `libraries`.
        """
        return commits_table(list(self.index.commits()))

    def select(
        self,
        query: str | None = None,
        *,
        collection: str | None = None,
        track_ids: str | Iterable[str] | None = None,
        **labels: Any,
    ) -> "FeatureStore":
        """Return the store with only some of its tracks; all that reads it then sees only those.

        Parameters
        ----------
        query
            A condition on the columns of `tracks`, as `DataFrame.query` takes it; ``@name`` is a variable of
            the caller.
        collection
            Name of a collection.
        track_ids
            Identifiers, or one.
        **labels
            Values of columns of `tracks`: ``genre="folk"``; a list or array means any of its values.

        Raises
        ------
        UnknownNameError
            If there is no such column or track.
        StoreError
            If the query cannot be understood.
        """
        tracks = self.tracks
        if collection is not None:
            check_collection(self.location, collection, self._rows["collection"])
        if track_ids is not None:
            wanted = pd.Index([track_ids] if isinstance(track_ids, str) else list(track_ids), dtype=object)
            missing = wanted.difference(tracks.index)
            if len(missing):
                raise UnknownNameError(
                    f"{self.location} has no track {missing[0]!r}.{did_you_mean(str(missing[0]), tracks.index)}"
                )
            tracks = tracks.loc[wanted]
        for name, value in (
            labels.items() if collection is None else [("collection", collection), *labels.items()]
        ):
            if name not in tracks.columns:
                raise UnknownNameError(f"tracks have no column {name!r}.{did_you_mean(name, tracks.columns)}")
            values = list(value) if pd.api.types.is_list_like(value) else [value]
            tracks = tracks[has_any(tracks[name], values)]
        if query is not None:
            tracks = queried(tracks, query)
        chosen = object.__new__(FeatureStore)
        chosen._wanted, chosen.location, chosen.index = self._wanted, self.location, self.index
        chosen._only = tracks.index.sort_values()
        for cached in ("_rows", "arrays", "_erased"):
            if cached in self.__dict__:
                chosen.__dict__[cached] = self.__dict__[cached]
        # Reading the labels of all tracks again would take seconds where there are many.
        chosen.__dict__["tracks"] = self.tracks[self.tracks.index.isin(chosen._only)]
        return chosen

    @cached_property
    def _erased(self) -> set[tuple[str, int]]:
        return erased_spans(self.location)

    @cached_property
    def _rows(self) -> pd.DataFrame:
        return self._unerased(self.index.tracks())

    def _unerased(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Leave out tracks that were forgotten since: not even the past has them."""
        return unerased(rows, self._erased) if self._erased else rows

    def index_rows(self, columns: Sequence[str]) -> pd.DataFrame:
        """Columns of the index for every file it knows, failed ones too, but not for what was forgotten."""
        if not self._erased:
            return self.index.tracks(columns)
        needed = [*columns, *(name for name in ("part", "row_start") if name not in columns)]
        return self._unerased(self.index.tracks(needed))[list(columns)]

    def placed_rows(self, columns: Sequence[str]) -> pd.DataFrame:
        """Columns of the index for the tracks of `tracks`, in no order: their labels are not looked at."""
        rows = self.index_rows(list(dict.fromkeys(["track_id", "part", *columns])))
        rows = rows[rows["part"].notna()]
        rows = rows if self._only is None else rows[rows["track_id"].isin(self._only)]
        return rows[list(columns)]

    @property
    def catalog_versions(self) -> dict[str, str]:
        """Fingerprint of each feature of the catalog; empty where the store was opened without one."""
        return dict(self._wanted)

    @cached_property
    def arrays(self) -> pd.DataFrame:
        """Every complete array: part, feature, fingerprint, rows, bytes, parameters."""
        return self.index.arrays()

    @cached_property
    def tracks(self) -> pd.DataFrame:
        """Tracks that have features, by `track_id`, their tags and labels as further columns.

        Tracks that their collection no longer has are among them (`status` is ``gone``): their features are
        kept. Of labels of one name, those added by ``mirstore labels add`` come before a manifest's, and
        these before the file's own tags.
        """
        rows = self._rows[self._rows["part"].notna()].drop(columns=list(OF_FAILURES))
        tracks = with_labels(rows).set_index("track_id").sort_index()
        return tracks if self._only is None else tracks[tracks.index.isin(self._only)]

    @property
    def given_labels(self) -> pd.DataFrame:
        """Labels of each track as they were given, by `track_id`.

        Returns
        -------
        DataFrame
            JSON objects: `file_tags` (of the file), `labels` (of a manifest), `added_labels`.
        """
        rows = self._rows[self._rows["part"].notna()].set_index("track_id")[list(LABEL_COLUMNS)].sort_index()
        return rows if self._only is None else rows[rows.index.isin(self._only)]

    @cached_property
    def spans(self) -> Spans:
        """Where each track's rows lie."""
        rows = self._unerased(self.index.tracks(_SPAN_COLUMNS))
        rows = rows[rows["part"].notna()]
        if self._only is not None:
            rows = rows[rows["track_id"].isin(self._only)]
        rows = rows.sort_values("track_id")
        numbers = [rows[name].to_numpy(dtype=np.int64) for name in ("row_start", "n_chunks", "n_samples")]
        return Spans(pd.Index(rows["track_id"], dtype=object), rows["part"].to_numpy(dtype=object), *numbers)

    @cached_property
    def failures(self) -> pd.DataFrame:
        """Files that could not be used, by `track_id`: `uri`, `stage` and one line of `reason`."""
        rows = self._rows[self._rows["status"] == "failed"]
        failures = rows[["track_id", "uri", "stage", "reason"]].set_index("track_id").sort_index()
        return failures if self._only is None else failures[failures.index.isin(self._only)]

    def track(self, track_id: str) -> "pd.Series[Any]":
        """Return one row of `tracks`.

        Raises
        ------
        UnknownNameError
            If there is no such track.
        StoreError
            If it failed.
        """
        self.number(track_id)
        return self.tracks.loc[track_id]

    def number(self, track_id: str) -> int:
        """Return a track's number in `spans`.

        Raises
        ------
        UnknownNameError, StoreError
            As `track`.
        """
        try:
            return int(self.spans.track_ids.get_loc(track_id))
        except KeyError:
            pass
        if track_id in self.failures.index:
            raise StoreError(f"{track_id} has no features: {self.failures.loc[track_id, 'reason']}.")
        raise UnknownNameError(
            f"{self.location} has no track {track_id!r}.{did_you_mean(track_id, self.spans.track_ids)}"
        )

    def __getitem__(self, name: str) -> StoredFeature:
        """Return a feature: ``"logmel"``, or one version of it, ``"logmel@ee3879d3c73d"``.

        Without a version it is the catalog's where the store was opened by one, else that of the last extraction.

        Raises
        ------
        UnknownNameError
            If the store has no such feature.
        """
        if name not in self._features:
            self._features[name] = self._feature(name)
        return self._features[name]

    @cached_property
    def _features(self) -> "dict[str, StoredFeature]":
        return {}

    def _feature(self, name: str) -> StoredFeature:
        wanted, _, fingerprint = name.partition("@")
        fingerprint = fingerprint or self._wanted.get(wanted, "")
        # By fingerprint first: a feature that was renamed in the catalog keeps its arrays.
        versions = self.arrays[self.arrays["fingerprint"] == fingerprint]
        if not len(versions):
            versions = self.arrays[self.arrays["feature"] == wanted]
            if fingerprint and len(versions):
                have = ", ".join(sorted(versions["fingerprint"].unique()))
                raise UnknownNameError(
                    f"{self.location} has {wanted!r} as {have}, not as {fingerprint}. "
                    "Run `mirstore extract`, or name a version it has."
                )
        if not len(versions):
            names = self.arrays["feature"].unique()
            hint = did_you_mean(wanted, names) or f" It has {', '.join(sorted(names)) or 'none yet'}."
            raise UnknownNameError(f"{self.location} has no feature {wanted!r}.{hint}")
        newest = versions["fingerprint"].iloc[-1]
        if not fingerprint and versions["fingerprint"].nunique() > 1:
            last = self.index.last_extracted(wanted)
            newest = last if last in set(versions["fingerprint"]) else newest
        return StoredFeature(self, wanted, newest, versions[versions["fingerprint"] == newest])

    def __getstate__(self) -> dict[str, Any]:
        return {
            "location": self.location,
            "snapshot": self.snapshot,
            "only": self._only,
            "wanted": self._wanted,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.location, self._only, self._wanted = state["location"], state["only"], state["wanted"]
        self.index = Index(self.location, state["snapshot"])

    def __repr__(self) -> str:
        return f"<FeatureStore {self.location}: {len(self.spans)} tracks, snapshot {self.snapshot}>"

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.arrays["feature"].unique()))

    @property
    def unreferenced_parts(self) -> list[str]:
        """Parts that this snapshot does not name: left by killed runs, or of other snapshots."""
        known = set(self.arrays["part"])
        return [name for name in self.location.names(PARTS) if name not in known]

    def aligned(self, track_id: str, features: Sequence[str], *, masked: bool = False) -> "xr.Dataset":
        """Return several features of one track on common axes.

        Parameters
        ----------
        track_id
            The track.
        features
            Names, as for indexing the store.
        masked
            Make what is padding NaN.

        Returns
        -------
        xarray.Dataset
            One variable a feature, all over `chunk`; where two have an axis of one name, but of different
            lengths or bands, the later's has its length or the feature's name behind its name.
        """
        import xarray as xr

        dataset = xr.Dataset()
        for name in features:
            array = self[name].track(track_id, masked=masked)
            names = {str(dim): _axis_name(dataset, array, str(dim), name) for dim in array.dims}
            dataset[name] = array.rename({dim: new for dim, new in names.items() if new != dim})
        return dataset

    def dataset(self, features: Sequence[str]) -> "xr.Dataset":
        """Return features of all tracks as one lazy dataset whose blocks are shards.

        Parameters
        ----------
        features
            Names, as for indexing the store.

        Returns
        -------
        xarray.Dataset
            A dask array a feature over `chunk`, in stored order: every chunk of the tracks that have all
            features. Coordinates by chunk: `track_id`, `start_s`, `valid_frames`.
        """
        from pipeline.store.chunk_table import chunk_dataset

        return chunk_dataset({name: self[name] for name in features})


def _axis_name(dataset: "xr.Dataset", array: "xr.DataArray", dim: str, feature: str) -> str:
    """Return the name under which an axis fits into a dataset: xarray would fill other bands with NaN."""
    for name in (dim, f"{dim}_{array.sizes[dim]}"):
        if name not in dataset.sizes:
            return name
        if dataset.sizes[name] == array.sizes[dim] and (
            dim not in array.coords or np.array_equal(dataset[name], array[dim])
        ):
            return name
    return f"{dim}_{feature}"


def check_collection(location: Location, name: str | Sequence[str], known: "pd.Series[str]") -> None:
    """Raise `UnknownNameError` where the index has never seen a file of a collection, or of any of several."""
    names = [name] if isinstance(name, str) else list(name)
    if names and not known.isin(names).any():
        raise UnknownNameError(
            f"{location} has no collection {names[0]!r}.{did_you_mean(names[0], known.unique())}"
        )


def open_part(place: Place, part: str) -> "xr.Dataset":
    """Open a whole part as xarray does, for a look at what is in it."""
    import xarray as xr

    try:
        part_data: xr.Dataset = xr.open_zarr(
            location_of(place).zarr(part_key(part)), consolidated=False, chunks=None
        )
        return part_data
    except (OSError, ValueError, KeyError) as error:
        raise StoreDamagedError(f"part {part}: cannot be opened ({error}).") from error
