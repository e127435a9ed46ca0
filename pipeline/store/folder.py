"""A store in a folder: durable writes, one writer at a time, and errors in plain words."""

import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StoreLockedError, StoreWriteError
from pipeline.store.location import Location, Lock, Stored

if TYPE_CHECKING:
    import pyarrow as pa
    from zarr.abc.store import Store

LOCK_FILE = ".lock"
REFUSALS = {
    errno.ENOSPC: "the disk is full; free some space and run again",
    errno.EDQUOT: "the disk quota is used up; free some space and run again",
    errno.EROFS: "the file system is read-only; mount it writable or choose another store",
    errno.EACCES: "permission denied; choose another store or change its permissions",
    errno.EPERM: "operation not permitted; choose another store or change its permissions",
    errno.ENOTEMPTY: "something is still being written there; wait for it to end and run again",
    errno.ENOTDIR: "a file is where a folder should be; choose another store",
    errno.EIO: "the disk reports an input/output error; check it before running again",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn failures of the store's file system into one `StoreWriteError` that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise StoreWriteError(f"cannot write to {path}: {REFUSALS[error.errno]}.") from error


class Folder(Location):
    """A folder of a file system.

    Parameters
    ----------
    path
        Need not exist yet.
    """

    listing_is_cheap = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = str(path)

    def read(self, key: str) -> bytes:
        return (self.path / key).read_bytes()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        handle = os.open(self.path / key, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(handle, length, start)
        finally:
            os.close(handle)

    def read_end(self, key: str, length: int) -> bytes:
        handle = os.open(self.path / key, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(handle, length, max(0, os.fstat(handle).st_size - length))
        finally:
            os.close(handle)

    def native_file(self, key: str) -> "pa.NativeFile":
        import pyarrow as pa

        return pa.OSFile(str(self.path / key))

    def exists(self, key: str) -> bool:
        return (self.path / key).exists()

    def write(self, key: str, content: bytes) -> None:
        path = self.path / key
        draft = path.with_name(f".{path.name}.{os.getpid()}")  # see `is_draft`
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = _FileWriter(draft)
                file.write(content)
                file.close()
                os.replace(draft, path)
                _sync_folder(path.parent)
            finally:
                draft.unlink(missing_ok=True)

    def writer(self, key: str) -> "_FileWriter":
        path = self.path / key
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            return _FileWriter(path)

    def names(self, prefix: str) -> list[str]:
        try:
            return sorted(os.listdir(self.path / prefix))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self, prefix: str) -> Iterator[Stored]:
        folders = [prefix.rstrip("/")]
        while folders:
            folder = folders.pop()
            try:
                entries = list(os.scandir(self.path / folder))
            except (FileNotFoundError, NotADirectoryError):  # another command deleted it meanwhile
                continue
            for entry in entries:
                key = f"{folder}/{entry.name}" if folder else entry.name
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_folder:
                    folders.append(key)
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    yield Stored(key, 0 if is_folder else status.st_size, status.st_mtime)

    def delete(self, prefix: str) -> None:
        path = self.path / prefix
        with writing(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def sync(self, prefix: str) -> None:
        with writing(self.path / prefix):
            for folder, _, _ in os.walk(self.path / prefix, topdown=False):
                _sync_folder(Path(folder))
            _sync_folder((self.path / prefix).parent)

    def table(self, name: str) -> tuple[str, dict[str, str]]:
        return str(self.path / name), {}

    def zarr(self, prefix: str) -> "Store":
        from zarr.storage import LocalStore

        return LocalStore(self.path / prefix, read_only=True)

    def prepare(self) -> None:
        with writing(self.path):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise StoreWriteError(
                    f"cannot write to {self.path}: it is a file, not a folder. Choose another store."
                ) from error
            except FileNotFoundError as error:  # what file systems of the system itself say
                raise StoreWriteError(
                    f"cannot write to {self.path}: no folder can be made there. Choose another store."
                ) from error

    @contextmanager
    def lock(self, command: str) -> Iterator[Lock]:
        """Hold the store for writing; the lock goes with the process, however it ends."""
        self.prepare()
        with writing(self.path):
            handle = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreLockedError(
                    f"{self.path} is being written by {_holder(handle)}. Wait for it to end."
                ) from error
            holder = {"command": command, "pid": os.getpid(), "host": socket.gethostname()}
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(holder).encode(), 0)
            yield _Held()
        finally:
            os.close(handle)


class _Held:
    """A lock that cannot be lost while the process lives."""

    def check(self) -> None:
        pass


class _FileWriter:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "wb", buffering=0)

    def write(self, content: bytes) -> None:
        with writing(self._path):
            view = memoryview(content)
            while len(view):  # a raw write may take a piece, on a disk that is almost full
                view = view[self._file.write(view) :]

    def close(self) -> None:
        with writing(self._path), self._file:
            os.fsync(self._file.fileno())

    def abandon(self) -> None:
        self._file.close()


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _holder(handle: int) -> str:
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
        return f"`{holder['command']}` (process {holder['pid']} on {holder['host']})"
    except (ValueError, KeyError, TypeError):
        return "another command"
