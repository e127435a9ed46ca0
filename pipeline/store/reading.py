"""Reading the store: tracks as a DataFrame, features as arrays with seconds on their axes."""

import json
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.framing import Grid
from pipeline.definitions import AUDIO_SCALE
from pipeline.errors import StoreDamagedError, StoreError, UnknownNameError, did_you_mean
from pipeline.store.index import Index
from pipeline.store.location import local_store
from pipeline.store.parts import PARTS, open_array, part_folder, read_rows

if TYPE_CHECKING:
    import xarray as xr
    import zarr


class FeatureStore:
    """A store, opened for reading at its newest commit.

    Parameters
    ----------
    place
        A store's folder, or a catalog (``.yaml``), which also chooses the version of each feature.

    Raises
    ------
    StoreMissingError, StoreFormatError, StoreDamagedError
        If it cannot be opened.
    CatalogError
        If `place` is a catalog that is wrong.

    Examples
    --------
    >>> store = FeatureStore("catalog.yaml")  # doctest: +SKIP
    >>> store.tracks.query("duration_s > 180")  # doctest: +SKIP
    >>> store["logmel"].track("demo/Apocalypse Song.ogg")  # doctest: +SKIP
    """

    def __init__(self, place: str | Path) -> None:
        self._wanted: dict[str, str] = {}
        if str(place).endswith((".yaml", ".yml")):
            from pipeline.catalog import load_catalog

            catalog = load_catalog(place)
            self._wanted = {name: f.fingerprint for name, f in catalog.resolved_features().items()}
            place = catalog.store
        self.path = local_store(place)
        self.index = Index(self.path)

    @property
    def grid(self) -> Grid:
        """Sample rate, hop and chunk length of every array."""
        return self.index.grid

    @cached_property
    def _rows(self) -> pd.DataFrame:
        return self.index.tracks()

    @cached_property
    def arrays(self) -> pd.DataFrame:
        """Every complete array: part, feature, fingerprint, rows, bytes, parameters."""
        return self.index.arrays()

    @cached_property
    def tracks(self) -> pd.DataFrame:
        """Tracks that have features, by `track_id`, their labels as further columns.

        Tracks whose file has gone are among them (`status` is ``gone``): their features are kept.
        """
        rows = self._rows[self._rows["part"].notna()].drop(columns=["stage", "reason"])
        return _with_labels(rows).set_index("track_id").sort_index()

    @cached_property
    def failures(self) -> pd.DataFrame:
        """Files that could not be used, by `track_id`: `uri`, `stage` and one line of `reason`."""
        rows = self._rows[self._rows["status"] == "failed"]
        return rows[["track_id", "uri", "stage", "reason"]].set_index("track_id").sort_index()

    def track(self, track_id: str) -> "pd.Series[Any]":
        """Return one row of `tracks`.

        Raises
        ------
        UnknownNameError
            If there is no such track.
        StoreError
            If it failed.
        """
        if track_id in self.tracks.index:
            return self.tracks.loc[track_id]
        if track_id in self.failures.index:
            raise StoreError(f"{track_id} has no features: {self.failures.loc[track_id, 'reason']}.")
        raise UnknownNameError(
            f"{self.path} has no track {track_id!r}.{did_you_mean(track_id, self.tracks.index)}"
        )

    def __getitem__(self, name: str) -> "StoredFeature":
        """Return a feature: ``"logmel"``, or one version of it, ``"logmel@ee3879d3c73d"``.

        Raises
        ------
        UnknownNameError
            If the store has no such feature.
        """
        wanted, _, fingerprint = name.partition("@")
        fingerprint = fingerprint or self._wanted.get(wanted, "")
        # By fingerprint first: a feature that was renamed in the catalog keeps its arrays.
        versions = self.arrays[self.arrays["fingerprint"] == fingerprint]
        if not len(versions):
            versions = self.arrays[self.arrays["feature"] == wanted]
            if fingerprint and len(versions):
                have = ", ".join(sorted(versions["fingerprint"].unique()))
                raise UnknownNameError(
                    f"{self.path} has {wanted!r} as {have}, not as {fingerprint}. "
                    "Run `mirstore extract`, or name a version it has."
                )
        if not len(versions):
            names = self.arrays["feature"].unique()
            hint = did_you_mean(wanted, names) or f" It has {', '.join(sorted(names)) or 'none yet'}."
            raise UnknownNameError(f"{self.path} has no feature {wanted!r}.{hint}")
        newest = versions["fingerprint"].iloc[-1]
        return StoredFeature(self, wanted, newest, versions[versions["fingerprint"] == newest])

    def __repr__(self) -> str:
        return f"<FeatureStore {self.path}: {len(self.tracks)} tracks, commit {self.index.version}>"

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.arrays["feature"].unique()))

    @property
    def unreferenced_parts(self) -> list[str]:
        """Parts on disk that the index does not name: left by killed runs, removed by ``mirstore gc``."""
        folder = self.path / PARTS
        known = set(self.arrays["part"])
        return (
            sorted(path.name for path in folder.iterdir() if path.name not in known)
            if folder.exists()
            else []
        )


def _with_labels(rows: pd.DataFrame) -> pd.DataFrame:
    """Turn the JSON of labels into columns; a label named as a column of the index is prefixed."""
    if not rows["labels"].notna().any():
        return rows.drop(columns="labels")
    labels = pd.DataFrame(
        [json.loads(text) if isinstance(text, str) else {} for text in rows["labels"]], index=rows.index
    )
    labels = labels.rename(columns={name: f"label_{name}" for name in labels.columns if name in rows.columns})
    return pd.concat([rows.drop(columns="labels"), labels], axis=1)


class StoredFeature:
    """One version of one feature of a store."""

    def __init__(self, store: FeatureStore, name: str, fingerprint: str, arrays: pd.DataFrame) -> None:
        self.store = store
        self.name = name
        self.fingerprint = fingerprint
        self._arrays: dict[str, str] = dict(zip(arrays["part"], arrays["array"], strict=True))
        first = arrays.iloc[0]
        self.kind: str = first["kind"]
        self.parameters: dict[str, Any] = json.loads(first["parameters"])
        self.row_shape: tuple[int, ...] = tuple(json.loads(first["row_shape"]))
        self.dtype = np.dtype(first["dtype"])

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.row_shape))
        version = f"{self.name}@{self.fingerprint}"
        return f"<{self.kind} {version}: {len(self.tracks)} tracks, a chunk is {shape} {self.dtype}>"

    @cached_property
    def tracks(self) -> pd.DataFrame:
        """The tracks that have this version."""
        tracks = self.store.tracks
        return tracks[tracks["part"].isin(list(self._arrays))]

    def stored(self, track_id: str) -> NDArray[Any]:
        """Return a track's rows exactly as stored.

        Parameters
        ----------
        track_id
            ``collection/relative/path.ext``.

        Returns
        -------
        (chunk, ...) of the stored type

        Raises
        ------
        UnknownNameError
            If the store has no such track.
        StoreError
            If the track has no such feature.
        StoreDamagedError
            If a checksum does not match.
        """
        row = self.store.track(track_id)
        part = str(row["part"])
        if part not in self._arrays:
            raise StoreError(
                f"{track_id} has no {self.name}@{self.fingerprint} yet. "
                f"Run `mirstore extract --feature {self.name}`."
            )
        name = self._arrays[part]
        array = _opened(self.store.path, part, name)
        start = int(row["row_start"])
        return read_rows(array, start, start + int(row["n_chunks"]), part=part, name=name)

    def values(self, track_id: str) -> NDArray[np.float32]:
        """Return a track's rows as float32 values, (chunk, ...); audio with full scale 1."""
        stored = self.stored(track_id)
        if stored.dtype == np.int16:
            return stored.astype(np.float32) * np.float32(AUDIO_SCALE)
        return stored.astype(np.float32, copy=False)

    def track(self, track_id: str) -> "xr.DataArray":
        """Return a track's feature with seconds on its axes.

        Returns
        -------
        xarray.DataArray
            float32, dims ``(chunk, mel, frame)`` or the like; coordinates `start_s` and
            `valid_frames` by chunk, `frame` in seconds from the chunk's start, `mel` in Hz.
        """
        import xarray as xr

        grid = self.store.grid
        row = self.store.track(track_id)
        valid = grid.valid_frames(int(row["n_samples"]))
        dims = _DIMS[self.kind]
        coordinates: dict[str, Any] = {
            "start_s": ("chunk", np.arange(len(valid)) * grid.chunk_s, {"units": "s"}),
            "valid_frames": ("chunk", valid),
        }
        if "frame" in dims:
            seconds = np.arange(grid.frames_per_chunk) * grid.hop_length / grid.sample_rate
            coordinates["frame"] = ("frame", seconds, {"units": "s"})
        if "mel" in dims:
            coordinates["mel"] = ("mel", self._band_centres(), {"units": "Hz"})
        if "sample" in dims:
            coordinates["sample"] = (
                "sample",
                np.arange(self.row_shape[0]) / grid.sample_rate,
                {"units": "s"},
            )
        return xr.DataArray(
            self.values(track_id),
            dims=dims,
            coords=coordinates,
            name=self.name,
            attrs={"track_id": track_id, "fingerprint": self.fingerprint, **self.parameters},
        )

    def frames(self, track_id: str) -> NDArray[np.float32]:
        """Return a frame feature of a whole track as librosa would, (band, frame), padding cut off.

        Raises
        ------
        StoreError
            If the feature has no frames.
        """
        if "frame" not in _DIMS[self.kind]:
            raise StoreError(f"{self.name} has no frames; use `values`.")
        chunks = self.values(track_id)
        valid = self.store.grid.valid_frames(int(self.store.track(track_id)["n_samples"]))
        joined = np.concatenate(list(chunks), axis=-1)
        return joined[:, : int(valid.sum())]

    def has_part(self, part: str) -> bool:
        """Return whether this version covers a part."""
        return part in self._arrays

    def _band_centres(self) -> NDArray[np.float64]:
        from features.spectral import LogMelParameters, band_centres_hz

        names = {
            name: self.parameters[name] for name in self.parameters if name not in ("kind", "from", "dtype")
        }
        return band_centres_hz(LogMelParameters(sample_rate=self.store.grid.sample_rate, **names))


_DIMS = {
    "audio": ("chunk", "sample"),
    "log_mel": ("chunk", "mel", "frame"),
    "mfcc": ("chunk", "coefficient", "frame"),
    "cnn": ("chunk", "dimension"),
}


@lru_cache(maxsize=256)
def _opened(store: Path, part: str, array: str) -> "zarr.Array[Any]":
    return open_array(store, part, array)


def open_part(store: Path, part: str) -> "xr.Dataset":
    """Open a whole part as xarray does, for a look at what is in it."""
    import xarray as xr

    folder = part_folder(store, part)
    try:
        part_data: xr.Dataset = xr.open_zarr(folder, consolidated=False, chunks=None)
        return part_data
    except (OSError, ValueError, KeyError) as error:
        raise StoreDamagedError(f"part {part}: cannot be opened ({error}).") from error
