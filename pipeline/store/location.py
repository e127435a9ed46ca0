"""Where a store is: a folder, or a bucket of an object store. Both look the same to the rest of the store."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from pipeline.errors import CatalogError

if TYPE_CHECKING:
    import pyarrow as pa
    from zarr.abc.store import Store

FORMAT_FILE = "mirstore.json"
BUCKETS = ("s3", "s3a", "gs", "az", "abfs", "abfss")


_DRAFT = re.compile(r"\..+\.\d+")


def is_draft(key: str) -> bool:
    """Return whether a file is what a killed `Location.write` may leave beside the one it was to replace."""
    return bool(_DRAFT.fullmatch(key.rpartition("/")[2]))


@dataclass(frozen=True, slots=True)
class Stored:
    """One file or object of a store: its key, its length in bytes, and when it was written (Unix time)."""

    key: str
    size: int
    modified_s: float


class Writer(Protocol):
    """A file or object that grows at its end; it exists once it is closed."""

    def write(self, content: bytes, /) -> object:
        """Append."""

    def close(self) -> None:
        """Make it durable."""

    def abandon(self) -> None:
        """Leave it incomplete; it is not to be used."""


class Lock(Protocol):
    """The right to write to a store."""

    def check(self) -> None:
        """Raise `StoreLockedError` where another has taken it meanwhile."""


class Location(ABC):
    """A tree of keys like ``parts/<part>/zarr.json``. Instances are equal by URL and can be pickled.

    Reading what is not there raises FileNotFoundError; a refusal to write, `StoreWriteError`.
    """

    url: str
    # Whether looking at every folder's names costs next to nothing.
    listing_is_cheap: bool

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Return the whole content."""

    @abstractmethod
    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer where the content ends."""

    @abstractmethod
    def read_end(self, key: str, length: int) -> bytes:
        """Return the last `length` bytes, or all if there are fewer."""

    @abstractmethod
    def native_file(self, key: str) -> "pa.NativeFile":
        """Return a file for Arrow to read, without Python behind it.

        Arrow's threads let go of a file whenever they like. Of one in Python that can be while the
        interpreter ends, and then the process is aborted.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether there is such a file or object."""

    @abstractmethod
    def write(self, key: str, content: bytes) -> None:
        """Write durably; readers see the old content or the new, never a piece."""

    @abstractmethod
    def writer(self, key: str) -> Writer:
        """Return a writer of new content."""

    @abstractmethod
    def names(self, prefix: str) -> list[str]:
        """Return the names directly below a prefix, sorted; those of folders too."""

    @abstractmethod
    def walk(self, prefix: str) -> Iterator[Stored]:
        """Return everything below a prefix, in no order; folders too, with no bytes."""

    @abstractmethod
    def delete(self, prefix: str) -> None:
        """Delete one key, or everything below it; nothing there is no error."""

    @abstractmethod
    def sync(self, prefix: str) -> None:
        """Wait until all names below a prefix are durable too."""

    @abstractmethod
    def table(self, name: str) -> tuple[str, dict[str, str]]:
        """Return URL and storage options of a Delta table."""

    @abstractmethod
    def zarr(self, prefix: str) -> "Store":
        """Return a read-only Zarr store of what is below a prefix."""

    @abstractmethod
    def prepare(self) -> None:
        """Make the place ready to be written to."""

    @abstractmethod
    def lock(self, command: str) -> AbstractContextManager[Lock]:
        """Hold the store for writing.

        Parameters
        ----------
        command
            What holds it, for the message others get.

        Raises
        ------
        StoreLockedError
            If another process holds it.
        """

    def create(self, key: str, content: bytes) -> None:
        """Write something new that nobody looks at yet; its name is durable after `sync`."""
        writer = self.writer(key)
        writer.write(content)
        writer.close()

    def size(self, prefix: str) -> int:
        """Return the bytes of everything below a prefix."""
        return sum(stored.size for stored in self.walk(prefix))


def native_buffer(content: bytes) -> "pa.BufferReader":
    """Return a copy of bytes as a file that Arrow owns; see `Location.native_file`."""
    import numpy as np
    import pyarrow as pa

    buffer = pa.allocate_buffer(len(content))
    np.frombuffer(buffer, dtype=np.uint8)[:] = np.frombuffer(content, dtype=np.uint8)
    return pa.BufferReader(buffer)


def location_of(place: "str | os.PathLike[str] | Location") -> Location:
    """Return the location that a path or URL names.

    Parameters
    ----------
    place
        A folder, a ``file://`` URL, or ``s3://bucket/prefix``, ``gs://...``, ``az://...``.

    Raises
    ------
    CatalogError
        If it is a URL of another kind.
    """
    from pipeline.store.folder import Folder

    if isinstance(place, Location):
        return place
    text = os.fspath(place)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if not scheme:
        return Folder(Path(text))
    if scheme == "file":
        return Folder(Path(unquote(urlsplit(text).path)))
    if scheme in BUCKETS:
        from pipeline.store.bucket import Bucket

        return Bucket(text)
    raise CatalogError(
        f"store {_without_credentials(text)}: a store is a folder or at s3://, gs:// or az://, not {scheme}://."
    )


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def is_folder(place: "str | os.PathLike[str] | Location") -> bool:
    """Return whether a place is a folder of this machine's file system."""
    from pipeline.store.folder import Folder

    return isinstance(location_of(place), Folder)
