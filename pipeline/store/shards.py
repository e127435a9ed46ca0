"""Zarr v3 shards written row by row.

A part's arrays grow by one row a chunk of audio and are never rewritten, so a shard can be streamed
to disk: each inner chunk is compressed and appended as it comes, and the index that the sharding
codec wants at the end of the file is written last. Memory therefore holds one row, however long the
track (a shard of 128 rows of audio would be 90 MB), and there is no event loop in the way. What is
written is plain Zarr v3; tests read it back with zarr-python, zarrs and xarray. `shard_reader` reads it.
"""

import json
import struct
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from pipeline.definitions import Feature
from pipeline.store.location import Location, Writer

blosc.use_threads = False  # one worker a core: threads of its own would only add contention
MISSING = np.uint64(2**64 - 1)
_RESIDUE = google_crc32c.value(bytes(4))  # of any content followed by its CRC-32C, low byte first


@lru_cache(maxsize=64)
def _template(feature: Feature) -> dict[str, Any]:
    """Array metadata as zarr-python itself would write them, for an array without rows."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec
    from zarr.core.buffer import default_buffer_prototype

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


def new_metadata(feature: Feature, dims: tuple[str, ...], attributes: dict[str, Any]) -> dict[str, Any]:
    """Return a feature's array metadata, but for the number of rows.

    Parameters
    ----------
    feature
        Gives shape, type and codec.
    dims
        Names of the axes, where the feature's own would clash with another array of the part.
    attributes
        Zarr attributes.
    """
    return {**_template(feature), "dimension_names": list(dims), "attributes": attributes}


class ShardWriter:
    """Encoded rows appended to the shards of one array.

    Parameters
    ----------
    location
        Of the store.
    key
        The array's folder.
    metadata
        Zarr metadata of the array, as `new_metadata` gives them or another array of the feature has them.
    """

    def __init__(self, location: Location, key: str, metadata: dict[str, Any]) -> None:
        self.key = key
        self.n_rows = 0
        self.n_bytes = 0
        self.metadata = metadata
        self._location = location
        self._rows_per_shard = int(metadata["chunk_grid"]["configuration"]["chunk_shape"][0])
        self._index = np.full((self._rows_per_shard, 2), MISSING, dtype="<u8")
        self._file: Writer | None = None
        self._offset = 0

    def append_encoded(self, encoded: bytes | None) -> None:
        """Append an encoded row with its checksum; None for one that is not there."""
        slot = self.n_rows % self._rows_per_shard
        if self._file is None:
            number = self.n_rows // self._rows_per_shard
            self._file = self._location.writer(shard_key(self.key, number, len(self.metadata["shape"])))
        if encoded is not None:
            self._file.write(encoded)
            self._index[slot] = self._offset, len(encoded)
            self._offset += len(encoded)
        self.n_rows += 1
        if slot == self._rows_per_shard - 1:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._file is None:
            return
        index = self._index.tobytes()
        self._file.write(index + checksum(index))
        self._file.close()
        self.n_bytes += self._offset + len(index) + 4
        self._file, self._offset = None, 0
        self._index.fill(MISSING)

    def finish(self) -> None:
        """Close the last shard and write the metadata; the array is readable from here on."""
        self._close_shard()
        metadata = {**self.metadata, "shape": [self.n_rows, *self.metadata["shape"][1:]]}
        self._location.create(f"{self.key}/zarr.json", json.dumps(metadata, indent=1).encode())

    def abandon(self) -> None:
        """Close what is open, incomplete."""
        if self._file is not None:
            self._file.abandon()
            self._file = None


class ShardedArrayWriter(ShardWriter):
    """Rows appended to one array of a part.

    Parameters
    ----------
    location
        Of the store.
    key
        The array's folder; must not exist.
    feature
        Gives shape, type, dims and codec.
    dims
        Names of the axes, where the feature's own would clash with another array of the part.
    attributes
        Zarr attributes.
    """

    def __init__(
        self,
        location: Location,
        key: str,
        feature: Feature,
        dims: tuple[str, ...],
        attributes: dict[str, Any],
    ) -> None:
        super().__init__(location, key, new_metadata(feature, dims, attributes))
        self.feature = feature
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
        self.append_encoded(encoded + checksum(encoded))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()


def checksum(content: bytes) -> bytes:
    """Return the CRC-32C of a content, as Zarr's codec appends it."""
    return struct.pack("<I", google_crc32c.value(content))


def is_intact(content: bytes | memoryview) -> bool:
    """Return whether content ends in its own checksum: the CRC of both together is then one constant."""
    # The library takes bytes and arrays, but no memoryview.
    return bool(google_crc32c.value(np.asarray(memoryview(content))) == _RESIDUE)


def shard_key(array: str, number: int, n_axes: int) -> str:
    """Return the key of an array's shard."""
    return "/".join([array, "c", str(number), *["0"] * (n_axes - 1)])
