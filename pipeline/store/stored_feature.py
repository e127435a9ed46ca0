"""One version of one feature of a store: its rows as arrays, with seconds on their axes."""

import json
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.framing import Seconds
from pipeline.definitions import AUDIO_SCALE
from pipeline.errors import StoreError
from pipeline.store.shard_reader import StoredRows

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

    from pipeline.store.chunk_table import ChunkTable
    from pipeline.store.reading import FeatureStore

DIMS = {
    "audio": ("chunk", "sample"),
    "log_mel": ("chunk", "mel", "frame"),
    "mfcc": ("chunk", "coefficient", "frame"),
    "cnn": ("chunk", "dimension"),
}


class StoredFeature:
    """One version of one feature of a store."""

    def __init__(self, store: "FeatureStore", name: str, fingerprint: str, arrays: pd.DataFrame) -> None:
        self.store = store
        self.name = name
        self.fingerprint = fingerprint
        first = arrays.iloc[0]
        self.kind: str = first["kind"]
        self.parameters: dict[str, Any] = json.loads(first["parameters"])
        self.rows = StoredRows(
            store.location,
            dict(zip(arrays["part"], arrays["array"], strict=True)),
            tuple(json.loads(first["row_shape"])),
            np.dtype(first["dtype"]),
        )

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.row_shape))
        version = f"{self.name}@{self.fingerprint}"
        return f"<{self.kind} {version}: {len(self.tracks)} tracks, a chunk is {shape} {self.dtype}>"

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a chunk."""
        return self.rows.row_shape

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Type of the stored values."""
        return self.rows.dtype

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes, `chunk` first."""
        return DIMS[self.kind]

    @cached_property
    def tracks(self) -> pd.DataFrame:
        """The tracks that have this version."""
        tracks = self.store.tracks
        return tracks[tracks["part"].isin(list(self.rows.arrays))]

    @cached_property
    def chunks(self) -> "ChunkTable":
        """Every chunk that has this version, in stored order."""
        from pipeline.store.chunk_table import chunk_table

        return chunk_table([self])

    def array(self, *, order: str = "track") -> "da.Array":
        """Return all chunks as one dask array, (chunk, ...) of the stored type.

        Parameters
        ----------
        order
            ``"track"``: by `track_id`, as in `tracks`, a block a track. ``"stored"``: as in `chunks`, a block
            a shard, the fastest to read as a whole.

        Raises
        ------
        StoreError
            If it is another order.
        """
        from pipeline.store.chunk_table import dask_array

        if order == "stored":
            return dask_array(self.rows, self.chunks)
        if order != "track":
            raise StoreError(f"expected the order 'track' or 'stored', got {order!r}.")
        return dask_array(self.rows, self.chunks.in_track_order(), by_track=True)

    def _span(self, track_id: str) -> tuple[str, int, int, int]:
        """Part, first row, number of chunks and of samples of a track."""
        spans, number = self.store.spans, self.store.number(track_id)
        part = spans.part[number]
        if part not in self.rows.arrays:
            raise StoreError(
                f"{track_id} has no {self.name}@{self.fingerprint} yet. "
                f"Run `mirstore extract --feature {self.name}`."
            )
        return part, int(spans.row_start[number]), int(spans.n_chunks[number]), int(spans.n_samples[number])

    def stored(self, track_id: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return a track's rows exactly as stored.

        Parameters
        ----------
        track_id
            ``collection/relative/path.ext``.
        start, stop
            Which chunks; all by default.

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
        part, first, count, _ = self._span(track_id)
        start, stop, _ = slice(start, stop).indices(count)
        return self.rows.reader(part).rows(first + start, first + max(start, stop))

    def values(self, track_id: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return a track's rows as float32 values, (chunk, ...); audio with full scale 1."""
        return as_values(self.stored(track_id, start, stop))

    def track(self, track_id: str, *, masked: bool = False) -> "xr.DataArray":
        """Return a track's feature with seconds on its axes.

        Parameters
        ----------
        track_id
            The track.
        masked
            Make frames (samples, of audio) that are padding of the last chunk NaN.

        Returns
        -------
        xarray.DataArray
            float32, dims ``(chunk, mel, frame)`` or the like; coordinates `start_s` and
            `valid_frames` by chunk, `frame` in seconds from the chunk's start, `mel` in Hz.
        """
        import xarray as xr

        grid = self.store.grid
        _, _, _, n_samples = self._span(track_id)
        values = self.values(track_id)
        valid = grid.valid_frames(n_samples)
        coordinates: dict[str, Any] = {
            "start_s": ("chunk", np.arange(len(valid)) * grid.chunk_s, {"units": "s"}),
            "valid_frames": ("chunk", valid),
        }
        if "frame" in self.dims:
            seconds = np.arange(grid.frames_per_chunk) * grid.hop_length / grid.sample_rate
            coordinates["frame"] = ("frame", seconds, {"units": "s"})
            if masked:
                values[-1, :, valid[-1] :] = np.nan
        if "mel" in self.dims:
            coordinates["mel"] = ("mel", self._band_centres(), {"units": "Hz"})
        if "sample" in self.dims:
            seconds = np.arange(self.row_shape[0]) / grid.sample_rate
            coordinates["sample"] = ("sample", seconds, {"units": "s"})
            if masked:
                values[-1, max(0, n_samples - (len(values) - 1) * self.row_shape[0]) :] = np.nan
        return xr.DataArray(
            values,
            dims=self.dims,
            coords=coordinates,
            name=self.name,
            attrs={"track_id": track_id, "fingerprint": self.fingerprint, **self.parameters},
        )

    def frames(
        self, track_id: str, start_s: Seconds = 0.0, stop_s: Seconds | None = None
    ) -> NDArray[np.float32]:
        """Return a frame feature as librosa would give it, (band, frame), padding cut off.

        Parameters
        ----------
        track_id
            The track.
        start_s, stop_s
            Which frames: those whose centre lies in [start_s, stop_s); the whole track by default. Only the
            chunks they lie in are read.

        Raises
        ------
        StoreError
            If the feature has no frames, or a bound is not a number.
        """
        if "frame" not in self.dims:
            raise StoreError(f"{self.name} has no frames; use `values`.")
        grid = self.store.grid
        return self._joined(track_id, grid.frames_per_chunk, grid.hop_length, start_s, stop_s)[0]

    def waveform(
        self, track_id: str, start_s: Seconds = 0.0, stop_s: Seconds | None = None
    ) -> NDArray[np.float32]:
        """Return cached audio, (sample,) with full scale 1, padding cut off.

        Parameters
        ----------
        track_id
            The track.
        start_s, stop_s
            Which samples: those in [start_s, stop_s); the whole track by default.

        Raises
        ------
        StoreError
            If the feature is no audio, or a bound is not a number.
        """
        if "sample" not in self.dims:
            raise StoreError(f"{self.name} is {self.kind}, not audio; use `frames` or `values`.")
        return self._joined(track_id, self.row_shape[0], 1, start_s, stop_s)[0]

    def excerpt(self, track_id: str, start_s: Seconds, stop_s: Seconds) -> "xr.DataArray":
        """Return a stretch of a track, joined over its chunks, with seconds from the track's start.

        Parameters
        ----------
        track_id
            The track.
        start_s, stop_s
            The stretch: samples or frames whose time lies in [start_s, stop_s); of features of one vector
            a chunk, the chunks that overlap it.

        Returns
        -------
        xarray.DataArray
            float32, ``(mel, time)``, ``(coefficient, time)``, ``(time,)`` of audio or ``(time, dimension)``;
            `time` in seconds.

        Raises
        ------
        StoreError
            If the stretch is empty, before the start or past the end.
        """
        import xarray as xr

        if not 0.0 <= start_s < stop_s:
            raise StoreError(f"expected 0 <= start_s < stop_s, got {start_s} and {stop_s}.")
        grid = self.store.grid
        coordinates: dict[str, Any] = {}
        if "frame" in self.dims:
            values, first = self._joined(track_id, grid.frames_per_chunk, grid.hop_length, start_s, stop_s)
            dims: tuple[str, ...] = (self.dims[1], "time")
            times = (first + np.arange(values.shape[-1])) * grid.hop_length / grid.sample_rate
            if "mel" in dims:
                coordinates["mel"] = ("mel", self._band_centres(), {"units": "Hz"})
        elif "sample" in self.dims:
            values, first = self._joined(track_id, self.row_shape[0], 1, start_s, stop_s)
            dims, times = ("time",), (first + np.arange(len(values))) / grid.sample_rate
        else:
            _, _, count, _ = self._span(track_id)
            borders = np.arange(count + 1) * grid.chunk_s
            first = min(count, int(np.searchsorted(borders, start_s, side="right")) - 1)
            last = int(np.searchsorted(borders[:-1], stop_s, side="left"))
            values = self.values(track_id, first, last)
            dims = ("time", *self.dims[1:])
            times = np.asarray((first + np.arange(len(values))) * grid.chunk_s)
        if not len(times):
            self._check_start(track_id, start_s)
        coordinates["time"] = ("time", times, {"units": "s"})
        return xr.DataArray(
            values, dims=dims, coords=coordinates, name=self.name, attrs={"track_id": track_id}
        )

    def _check_start(self, track_id: str, start_s: Seconds) -> None:
        """Raise `StoreError` where a stretch of nothing lies past the end."""
        _, _, count, n_samples = self._span(track_id)
        grid = self.store.grid
        end_s = min(n_samples, count * grid.chunk_samples) / grid.sample_rate
        if start_s >= end_s:
            raise StoreError(f"expected start_s before the end of {track_id}, {end_s:.3f} s, got {start_s}.")

    def _joined(
        self, track_id: str, per_chunk: int, hop_length: int, start_s: Seconds, stop_s: Seconds | None
    ) -> tuple[NDArray[np.float32], int]:
        """Values of a stretch joined along their last axis, and the number of its first frame or sample."""
        _, _, count, n_samples = self._span(track_id)
        grid = self.store.grid
        total = n_samples if hop_length == 1 else int(grid.valid_frames(n_samples).sum())
        total = min(total, count * per_chunk)  # a short tail is not stored
        if math.isnan(start_s) or (stop_s is not None and math.isnan(stop_s)):
            raise StoreError(f"expected a stretch in seconds, got {start_s} to {stop_s}.")
        first = _first_from(start_s, hop_length, grid.sample_rate, total)
        last = total if stop_s is None else _first_from(stop_s, hop_length, grid.sample_rate, total)
        last = max(first, last)
        start = first // per_chunk
        stop = -(-last // per_chunk) if first < last else start
        chunks = self.values(track_id, start, stop)
        joined = np.moveaxis(chunks, 0, -2).reshape(*self.row_shape[:-1], -1)
        return joined[..., first - start * per_chunk : last - start * per_chunk], first

    def has_part(self, part: str) -> bool:
        """Return whether this version covers a part."""
        return part in self.rows.arrays

    def _band_centres(self) -> NDArray[np.float64]:
        from features.spectral import LogMelParameters, band_centres_hz

        names = {
            name: self.parameters[name] for name in self.parameters if name not in ("kind", "from", "dtype")
        }
        return band_centres_hz(LogMelParameters(sample_rate=self.store.grid.sample_rate, **names))


def _first_from(seconds: Seconds, hop_length: int, sample_rate: int, total: int) -> int:
    """Return the number of the first frame or sample, of `total`, whose time is `seconds` or later."""
    near = min(total, max(0.0, seconds * sample_rate / hop_length))
    number = max(0, math.ceil(near) - 1)  # rounded up, the product may be one too many
    while number < total and number * hop_length / sample_rate < seconds:
        number += 1
    return number


_WIDENED = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def as_values(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Return stored rows as float32 values; int16 audio with full scale 1."""
    if stored.dtype == np.int16:
        return stored.astype(np.float32) * np.float32(AUDIO_SCALE)
    if stored.dtype == np.float16:
        # Looked up: numpy widens in software, at half this speed.
        return np.take(_WIDENED, stored.view(np.uint16))
    return stored.astype(np.float32, copy=False)
