"""What an export writes: NumPy files, Parquet tables, or one Zarr group; each takes a track at a time."""

import hashlib
import unicodedata
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from pipeline.store.chunk_table import shared_dims
from pipeline.store.stored_feature import StoredFeature

Values = Mapping[str, NDArray[np.float32]]

COORDINATES = ("track_id", "chunk", "start_s", "valid_frames")
PARQUET_FILE_BYTES = 256 << 20
_ROW_GROUP_BYTES = 16 << 20
_ZARR_CHUNK_BYTES = 4 << 20
_NAME_BYTES = 200  # of the 255 that file systems allow
_UNSAFE = set('%\\<>:"|?*')


class Exporter(ABC):
    """Writes tracks below a folder.

    Parameters
    ----------
    folder
        Empty.
    features
        By the names they get.
    n_chunks
        How many there are at most.
    """

    def __init__(self, folder: Path, features: Mapping[str, StoredFeature], n_chunks: int) -> None:
        self.folder = folder
        self.features = features
        self.n_chunks = n_chunks

    @abstractmethod
    def add(
        self, track_id: str, values: Values, start_s: NDArray[np.float64], valid_frames: NDArray[np.int32]
    ) -> tuple[str, int]:
        """Write a track; return the file it is in, relative to the folder, and its first row there."""

    @abstractmethod
    def close(self) -> None:
        """Complete everything."""


class NumpyFiles(Exporter):
    """A file a track, ``tracks/<track_id>.npz``: an array a feature, `start_s` and `valid_frames`."""

    def __init__(self, folder: Path, features: Mapping[str, StoredFeature], n_chunks: int) -> None:
        super().__init__(folder, features, n_chunks)
        self._taken: set[str] = set()

    def add(
        self, track_id: str, values: Values, start_s: NDArray[np.float64], valid_frames: NDArray[np.int32]
    ) -> tuple[str, int]:
        name = safe_path(track_id)
        # Some file systems make no difference between "A" and "a", or between two spellings of "é".
        if _folded(name) in self._taken:
            name = f"{name}~{_digest(track_id)}"
        self._taken.add(_folded(name))
        file = self.folder / "tracks" / f"{name}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays = {**values, "start_s": start_s, "valid_frames": valid_frames}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
        return file.relative_to(self.folder).as_posix(), 0

    def close(self) -> None:
        pass


class ParquetFiles(Exporter):
    """Tables ``rows-00000.parquet``: a row a chunk, a fixed-size list a feature."""

    def __init__(self, folder: Path, features: Mapping[str, StoredFeature], n_chunks: int) -> None:
        super().__init__(folder, features, n_chunks)
        self._n_files = 0
        self._writer: parquet.ParquetWriter | None = None
        self._rows = self._bytes = 0
        self._pending: list[pa.Table] = []
        self._pending_bytes = 0
        sizes = {name: int(np.prod(feature.row_shape)) for name, feature in features.items()}
        self._schema = pa.schema(
            [
                pa.field("track_id", pa.string()),
                pa.field("chunk", pa.int32()),
                pa.field("start_s", pa.float64()),
                pa.field("valid_frames", pa.int32()),
                *(pa.field(name, pa.list_(pa.float32(), size)) for name, size in sizes.items()),
            ]
        )
        self._row_bytes = 4 * sum(sizes.values()) + 24

    def add(
        self, track_id: str, values: Values, start_s: NDArray[np.float64], valid_frames: NDArray[np.int32]
    ) -> tuple[str, int]:
        n = len(start_s)
        lists = [
            pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array[0].size)
            for array in values.values()
        ]
        columns = [
            pa.array([track_id] * n, pa.string()),
            pa.array(np.arange(n, dtype=np.int32)),
            pa.array(start_s),
            pa.array(valid_frames, pa.int32()),
            *lists,
        ]
        if self._bytes and self._bytes + n * self._row_bytes > PARQUET_FILE_BYTES:
            self._end_file()
        if self._writer is None:
            file = self.folder / f"rows-{self._n_files:05}.parquet"
            self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        first = self._rows
        self._pending.append(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows += n
        self._bytes += n * self._row_bytes
        self._pending_bytes += n * self._row_bytes
        if self._pending_bytes >= _ROW_GROUP_BYTES:
            self._write()
        return f"rows-{self._n_files:05}.parquet", first

    def _write(self) -> None:
        if self._pending and self._writer is not None:
            rows = max(1, _ROW_GROUP_BYTES // self._row_bytes)
            self._writer.write_table(pa.concat_tables(self._pending), row_group_size=rows)
        self._pending, self._pending_bytes = [], 0

    def _end_file(self) -> None:
        self._write()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._n_files += 1
        self._rows = self._bytes = 0

    def close(self) -> None:
        self._end_file()


class ZarrGroup(Exporter):
    """One Zarr v3 group, the folder itself: an array a feature over `chunk`, in the order of tracks."""

    def __init__(self, folder: Path, features: Mapping[str, StoredFeature], n_chunks: int) -> None:
        import zarr

        super().__init__(folder, features, n_chunks)
        self._group = zarr.create_group(folder)
        self._arrays: dict[str, Any] = {}
        self._pending: dict[str, list[NDArray[np.float32]]] = {name: [] for name in features}
        self._written = dict.fromkeys(features, 0)
        self._rows = 0
        self._track_ids: list[str] = []
        self._lengths: list[int] = []
        self._start_s: list[NDArray[np.float64]] = []
        self._valid_frames: list[NDArray[np.int32]] = []
        dims = shared_dims(list(features.values()))
        for (name, feature), names in zip(features.items(), dims, strict=True):
            row_bytes = 4 * int(np.prod(feature.row_shape))
            rows = max(1, min(n_chunks, _ZARR_CHUNK_BYTES // row_bytes))
            self._arrays[name] = self._group.create_array(
                name,
                shape=(n_chunks, *feature.row_shape),
                chunks=(rows, *feature.row_shape),
                dtype="float32",
                dimension_names=names,
                attributes={
                    "fingerprint": feature.fingerprint,
                    "parameters": feature.parameters,
                    "coordinates": "track_id start_s valid_frames",
                },
            )

    def add(
        self, track_id: str, values: Values, start_s: NDArray[np.float64], valid_frames: NDArray[np.int32]
    ) -> tuple[str, int]:
        first = self._rows
        self._rows += len(start_s)
        self._track_ids.append(track_id)
        self._lengths.append(len(start_s))
        self._start_s.append(start_s)
        self._valid_frames.append(valid_frames)
        for name, array in values.items():
            self._pending[name].append(array)
            self._write(name, self._arrays[name].chunks[0])
        return ".", first

    def _write(self, name: str, multiple: int) -> None:
        """Write what is pending up to a multiple of rows: whole Zarr chunks, each once."""
        n = sum(map(len, self._pending[name])) // multiple * multiple
        if not n:
            return
        rows = np.concatenate(self._pending[name])
        start = self._written[name]
        self._arrays[name][start : start + n] = rows[:n]
        self._written[name] = start + n
        self._pending[name] = [rows[n:]] if len(rows) > n else []

    def close(self) -> None:
        import zarr

        for name, array in self._arrays.items():
            self._write(name, 1)
            if self._rows < self.n_chunks:  # a track could not be read
                array.resize((self._rows, *array.shape[1:]))
        track_ids = np.repeat(np.array(self._track_ids, dtype=object), self._lengths)
        start_s = np.concatenate([*self._start_s, np.zeros(0)])
        valid_frames = np.concatenate([*self._valid_frames, np.zeros(0, np.int32)]).astype(np.int32)
        for name, dtype, data in (
            ("track_id", "string", track_ids),
            ("start_s", "float64", start_s),
            ("valid_frames", "int32", valid_frames),
        ):
            array = self._group.create_array(
                name,
                shape=data.shape,
                chunks=(max(1, len(data)),),
                dtype=dtype,
                dimension_names=["chunk"],
                attributes={"units": "s"} if name == "start_s" else {},
            )
            if len(data):
                array[:] = data
        with warnings.catch_warnings():
            # xarray looks for it first; every reader of Zarr v3 may ignore it.
            warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
            zarr.consolidate_metadata(self.folder)


FORMATS: dict[str, type[Exporter]] = {"npz": NumpyFiles, "parquet": ParquetFiles, "zarr": ZarrGroup}


def safe_path(track_id: str) -> str:
    """Return a track's name as a relative path that every file system takes, and that leads nowhere else.

    Characters that some system refuses are written as in a URL; names that are too long are cut and get a hash.

    Examples
    --------
    >>> safe_path("demo/AC: DC/../song?.ogg")
    'demo/AC%3A DC/%2E%2E/song%3F.ogg'
    """
    parts = track_id.split("/")
    # A folder must not be called as the file of another track is.
    folders = [
        _safe(f"{name}%" if name.lower().endswith(".npz") else name) for name in map(_escaped, parts[:-1])
    ]
    return "/".join([*folders, _safe(_escaped(parts[-1]))])


def _escaped(part: str) -> str:
    if not part.strip("."):  # nothing, "." and ".."
        return "%2E" * len(part) or "%"
    text = "".join(
        f"%{ord(c):02X}" if c in _UNSAFE or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c
        for c in part
    )
    return text[:-1] + f"%{ord(text[-1]):02X}" if text[-1] in ". " else text


def _safe(part: str) -> str:
    encoded = part.encode()
    if len(encoded) <= _NAME_BYTES:
        return part
    return encoded[:_NAME_BYTES].decode(errors="ignore") + f"~{_digest(part)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
