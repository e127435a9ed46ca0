"""Zarr v3 shards read row by row, everything checked that can be: the index's checksum, and each row's.

Reads are plain ranged reads, without an event loop: a row takes a third of the time that zarr-python takes.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from pipeline.errors import CURE, StoreDamagedError, StoreError
from pipeline.store.location import Location
from pipeline.store.shards import MISSING, checksum, is_intact, shard_key

INDEXES_KEPT = 64  # of one array
READERS_KEPT = 1024  # of one feature


class ShardReader:
    """One array of a part, read by rows, every checksum verified.

    Parameters
    ----------
    location
        Of the store.
    part, array
        Names, as the index has them.

    Raises
    ------
    StoreDamagedError
        If the array is not there, or its metadata are not what this store writes.

    Notes
    -----
    Reads are plain ranged reads: no event loop, no thread. It can be used from several threads.
    """

    def __init__(self, location: Location, part: str, array: str) -> None:
        self._location = location
        self.name = f"part {part}, array {array}"
        self._key = f"parts/{part}/{array}"
        try:
            self.metadata: dict[str, Any] = json.loads(location.read(f"{self._key}/zarr.json"))
            shape = tuple(int(length) for length in self.metadata["shape"])
            self.dtype = np.dtype(self.metadata["data_type"])
            self._rows_per_shard = _rows_per_shard(self.metadata)
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise StoreDamagedError(
                f"{self.name}: cannot be opened ({' '.join(str(error).split())}). {CURE}"
            ) from error
        self.n_rows, self.row_shape = shape[0], shape[1:]
        self.row_bytes = int(np.prod(self.row_shape)) * self.dtype.itemsize
        self._indexes: dict[int, NDArray[np.uint64]] = {}

    @property
    def rows_per_shard(self) -> int:
        """Rows of a full shard."""
        return self._rows_per_shard

    def rows(self, start: int, stop: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return rows [start, stop) as stored.

        Parameters
        ----------
        start, stop
            Row numbers.
        out
            Where to put them, (stop - start, ...) of the stored type, C-contiguous; made if None.

        Raises
        ------
        StoreDamagedError
            If a checksum does not match or rows are missing.
        StoreError
            If the rows were erased for good.
        """
        found = self.encoded(start, stop)
        if out is None:
            out = np.empty((len(found), *self.row_shape), dtype=self.dtype)
        flat = out.reshape(len(found), -1) if found else out
        for number, encoded in enumerate(found):
            if encoded is None:
                raise StoreError(f"{self.name}: row {start + number} was erased (`mirstore forget`).")
            self.decode(encoded, flat[number], start + number)
        return out

    def erased(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return which of the rows [start, stop) were erased for good."""
        return np.array([self._slot(row)[0] == MISSING for row in range(start, stop)], dtype=bool)

    def _slot(self, row: int) -> NDArray[np.uint64]:
        slot: NDArray[np.uint64] = self._index(row // self._rows_per_shard)[row % self._rows_per_shard]
        return slot

    def decode(self, encoded: memoryview, into: NDArray[Any], row: int) -> None:
        """Decompress a row of `encoded` into an array of a row's size; `row` is its number, for the error."""
        try:
            blosc.decompress(encoded[:-4], into)
        except (RuntimeError, ValueError) as error:
            raise self._damaged(f"row {row} cannot be decompressed") from error

    def _damaged(self, what: str) -> StoreDamagedError:
        return StoreDamagedError(f"{self.name}: {what}. {CURE}")

    def _index(self, shard: int) -> NDArray[np.uint64]:
        index = self._indexes.get(shard)
        if index is None:
            index = self._read_index(shard)
            if len(self._indexes) >= INDEXES_KEPT:
                self._indexes.clear()
            self._indexes[shard] = index
        return index

    def _read_index(self, shard: int) -> NDArray[np.uint64]:
        length = self._rows_per_shard * 16
        try:
            content = self._location.read_end(self._shard_key(shard), length + 4)
        except FileNotFoundError as error:
            raise self._damaged(f"shard {shard} is missing") from error
        except OSError as error:
            raise self._damaged(f"shard {shard} cannot be read ({error.strerror or error})") from error
        if len(content) != length + 4 or not is_intact(content):
            raise self._damaged(f"the index of shard {shard} is damaged (a checksum does not match)")
        return np.frombuffer(content, dtype="<u8", count=2 * self._rows_per_shard).reshape(-1, 2)

    def blank(self, shard: int, slots: Sequence[int]) -> None:
        """Erase rows of one shard; see `blank_rows`."""
        try:
            content = bytearray(self._location.read(self._shard_key(shard)))
        except FileNotFoundError:  # gc was killed while it deleted the part
            return
        index = self._read_index(shard).copy()
        for slot in slots:
            offset, length = (int(number) for number in index[slot])
            if offset != MISSING:
                content[offset : offset + length] = bytes(length)
                index[slot] = MISSING
        encoded = index.tobytes()
        content[len(content) - len(encoded) - 4 :] = encoded + checksum(encoded)
        self._location.write(self._shard_key(shard), bytes(content))
        self._indexes.pop(shard, None)

    def _shard_key(self, shard: int) -> str:
        return shard_key(self._key, shard, 1 + len(self.row_shape))

    def encoded(self, start: int, stop: int) -> list[memoryview | None]:
        """Return rows as they lie in the shard, checksums included and verified; None for erased ones.

        Rows of one shard share the memory of what was read: it is free when all of them are.
        """
        if not 0 <= start <= stop <= self.n_rows:
            raise self._damaged(f"rows {start} to {stop} were expected, it has {self.n_rows}")
        found: list[memoryview | None] = []
        while start < stop:
            shard, slot = divmod(start, self._rows_per_shard)
            count = min(stop - start, self._rows_per_shard - slot)
            found += self._encoded_of_shard(shard, slot, count)
            start += count
        return found

    def _encoded_of_shard(self, shard: int, slot: int, count: int) -> list[memoryview | None]:
        """Read rows of one shard in one piece: they lie one behind the other."""
        try:
            return self._read_slots(shard, slot, count)
        except StoreDamagedError:
            # Rows may have been erased since the index was read; then it says so now.
            self._indexes.pop(shard, None)
            return self._read_slots(shard, slot, count)

    def _read_slots(self, shard: int, slot: int, count: int) -> list[memoryview | None]:
        slots = [(int(offset), int(length)) for offset, length in self._index(shard)[slot : slot + count]]
        there = [(offset, length) for offset, length in slots if offset != MISSING]
        if not there:
            return [None] * count
        first = there[0][0]
        size = there[-1][0] + there[-1][1] - first
        try:
            content = memoryview(self._location.read_range(self._shard_key(shard), first, size))
        except FileNotFoundError as error:
            raise self._damaged(f"shard {shard} is missing") from error
        except OSError as error:
            raise self._damaged(f"shard {shard} cannot be read ({error.strerror or error})") from error
        rows: list[memoryview | None] = []
        for number, (offset, length) in enumerate(slots, start=shard * self._rows_per_shard + slot):
            if offset == MISSING:
                rows.append(None)
                continue
            row = content[offset - first : offset - first + length]
            if len(row) != length or not is_intact(row):
                raise self._damaged(f"row {number} is damaged (a checksum does not match)")
            rows.append(row)
        return rows


def blank_rows(location: Location, part: str, array: str, rows: Iterable[int]) -> None:
    """Erase rows of an array for good; the other rows stay where they are.

    Each shard is replaced atomically by one in which the rows' bytes are zeros and its index says that they
    are not there. A reader that still has the old index finds zeros, which no checksum fits, and looks again.

    Parameters
    ----------
    location, part, array
        The array.
    rows
        Row numbers; those past the end are ignored.

    Raises
    ------
    StoreDamagedError
        If a shard's index cannot be read.
    """
    reader = ShardReader(location, part, array)
    by_shard: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        if row < reader.n_rows:
            by_shard[row // reader.rows_per_shard].append(row % reader.rows_per_shard)
    for shard, slots in by_shard.items():
        reader.blank(shard, slots)


class StoredRows:
    """The rows of one version of a feature, in all parts; light, and can be sent to other processes.

    Parameters
    ----------
    location
        Of the store.
    arrays
        Name of the array by part.
    row_shape, dtype
        Of a row, as stored.
    """

    def __init__(
        self,
        location: Location,
        arrays: Mapping[str, str],
        row_shape: tuple[int, ...],
        dtype: "np.dtype[Any]",
    ) -> None:
        self.location = location
        self.arrays = arrays
        self.row_shape = row_shape
        self.dtype = dtype
        self._readers: dict[str, ShardReader] = {}

    def __reduce__(self) -> tuple[type["StoredRows"], tuple[Any, ...]]:
        return StoredRows, (self.location, self.arrays, self.row_shape, self.dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in memory."""
        return int(np.prod(self.row_shape)) * self.dtype.itemsize

    def reader(self, part: str) -> ShardReader:
        """Return the reader of a part's rows.

        Raises
        ------
        StoreDamagedError
            If the array cannot be opened.
        """
        reader = self._readers.get(part)
        if reader is None:
            reader = ShardReader(self.location, part, self.arrays[part])
            if len(self._readers) >= READERS_KEPT:
                self._readers.clear()
            self._readers[part] = reader
        return reader


def _rows_per_shard(metadata: dict[str, Any]) -> int:
    """Return the rows of a shard, after checking that codecs and layout are those this store writes."""
    (codec,) = metadata["codecs"]
    inner = [entry["name"] for entry in codec["configuration"]["codecs"]]
    index = [entry["name"] for entry in codec["configuration"]["index_codecs"]]
    row = list(codec["configuration"]["chunk_shape"])
    if (
        codec["name"] != "sharding_indexed"
        or inner != ["bytes", "blosc", "crc32c"]
        or index != ["bytes", "crc32c"]
        or codec["configuration"].get("index_location", "end") != "end"
        or row != [1, *metadata["shape"][1:]]
    ):
        raise ValueError("its layout is not the one mirstore writes")
    return int(metadata["chunk_grid"]["configuration"]["chunk_shape"][0])
