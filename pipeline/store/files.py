"""Files of a local store: durable writes, one writer at a time, and errors in plain words."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import StoreLockedError, StoreWriteError

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


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def synced_write(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on disk."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def replaced(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a piece."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        synced_write(draft, content)
        with writing(path):
            os.replace(draft, path)
            sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def write_lock(store: Path, command: str) -> Iterator[None]:
    """Hold the store for writing; the lock goes with the process, however it ends.

    Parameters
    ----------
    store
        Folder of the store; made if need be.
    command
        What holds it, for the message others get.

    Raises
    ------
    StoreLockedError
        If another process holds it.
    """
    with writing(store):
        try:
            store.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise StoreWriteError(
                f"cannot write to {store}: it is a file, not a folder. Choose another store."
            ) from error
        handle = os.open(store / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreLockedError(
                f"{store} is being written by {_holder(handle)}. Wait for it to end."
            ) from error
        holder = {"command": command, "pid": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(handle)


def _holder(handle: int) -> str:
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
        return f"`{holder['command']}` (process {holder['pid']} on {holder['host']})"
    except (ValueError, KeyError, TypeError):
        return "another command"
