"""Zarr v3 shards written row by row.

A part's arrays grow by one row a chunk of audio and are never rewritten, so a shard can be streamed
to disk: each inner chunk is compressed and appended as it comes, and the index that the sharding
codec wants at the end of the file is written last. Memory therefore holds one row, however long the
track (a shard of 128 rows of audio would be 90 MB), and there is no event loop in the way. What is
written is plain Zarr v3; tests read it back with zarr-python, zarrs and xarray.
"""

import json
import os
import struct
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype

from pipeline.definitions import Feature
from pipeline.store.files import synced_write, writing

blosc.use_threads = False  # one worker a core: threads of its own would only add contention
_MISSING = np.uint64(2**64 - 1)


@lru_cache(maxsize=64)
def _template(feature: Feature) -> dict[str, Any]:
    """Array metadata as zarr-python itself would write them, for an array without rows."""
    array = zarr.create_array(
        store=zarr.storage.MemoryStore(),
        shape=(0, *feature.row_shape),
        chunks=(1, *feature.row_shape),
        shards=(feature.definition.rows_per_shard, *feature.row_shape),
        dtype=feature.dtype,
        compressors=[
            BloscCodec(
                typesize=feature.dtype.itemsize,
                cname="zstd",
                clevel=1,
                shuffle="shuffle" if feature.definition.byte_shuffle else "bitshuffle",
                blocksize=feature.row_bytes,
            ),
            Crc32cCodec(),
        ],
        fill_value=0,
        dimension_names=feature.dims,
    )
    buffers = array.metadata.to_buffer_dict(default_buffer_prototype())
    metadata: dict[str, Any] = json.loads(buffers["zarr.json"].to_bytes())
    return metadata


class ShardedArrayWriter:
    """Rows appended to one array of a part.

    Parameters
    ----------
    folder
        The array's folder; must not exist.
    feature
        Gives shape, type, dims and codec.
    dims
        Names of the axes, where the feature's own would clash with another array of the part.
    attributes
        Zarr attributes.
    """

    def __init__(
        self, folder: Path, feature: Feature, dims: tuple[str, ...], attributes: dict[str, Any]
    ) -> None:
        self.feature = feature
        self.n_rows = 0
        self.n_bytes = 0
        self._folder = folder
        self._dims = dims
        self._attributes = attributes
        self._rows_per_shard = feature.definition.rows_per_shard
        self._index = np.full((self._rows_per_shard, 2), _MISSING, dtype="<u8")
        self._file: BinaryIO | None = None
        self._offset = 0
        self._codec = blosc.Blosc(
            cname="zstd",
            clevel=1,
            shuffle=blosc.SHUFFLE if feature.definition.byte_shuffle else blosc.BITSHUFFLE,
            # A row is read whole, so it is one block: 4 % smaller than in Blosc's own blocks of 32 KB,
            # a third faster to write and twice as fast to read.
            blocksize=feature.row_bytes,
        )

    def append(self, row: NDArray[Any]) -> None:
        """Compress one row, shaped and typed as stored, and append it."""
        if row.shape != self.feature.row_shape or row.dtype != self.feature.dtype:
            raise ValueError(
                f"a row of {self.feature.name} must be {self.feature.row_shape} {self.feature.dtype}, "
                f"got {row.shape} {row.dtype}."
            )
        encoded = self._codec.encode(np.ascontiguousarray(row))
        slot = self.n_rows % self._rows_per_shard
        with writing(self._folder):
            if self._file is None:
                shard = self._folder.joinpath(
                    "c", str(self.n_rows // self._rows_per_shard), *["0"] * len(self.feature.row_shape)
                )
                shard.parent.mkdir(parents=True)
                self._file = open(shard, "wb", buffering=0)
            self._file.write(encoded)
            self._file.write(struct.pack("<I", google_crc32c.value(encoded)))
        self._index[slot] = self._offset, len(encoded) + 4
        self._offset += len(encoded) + 4
        self.n_rows += 1
        if slot == self._rows_per_shard - 1:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._file is None:
            return
        index = self._index.tobytes()
        with writing(self._folder), self._file:
            self._file.write(index + struct.pack("<I", google_crc32c.value(index)))
            os.fsync(self._file.fileno())
        self.n_bytes += self._offset + len(index) + 4
        self._file, self._offset = None, 0
        self._index.fill(_MISSING)

    def finish(self) -> None:
        """Close the last shard and write the metadata; the array is readable from here on."""
        self._close_shard()
        metadata = dict(_template(self.feature))
        metadata["shape"] = [self.n_rows, *self.feature.row_shape]
        metadata["dimension_names"] = list(self._dims)
        metadata["attributes"] = self._attributes
        synced_write(self._folder / "zarr.json", json.dumps(metadata, indent=1).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
