"""What a scan finds: tracks and problems of one collection, gathered into Arrow batches to stay small."""

import os
import stat
from array import array
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

_BATCH = 65_536  # paths held as Python strings at a time
TRACKS = pa.schema(
    [
        ("track_id", pa.large_string()),
        ("collection", pa.large_string()),
        ("uri", pa.large_string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("labels", pa.large_string()),
    ]
)
_TYPES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


@dataclass(slots=True)
class Found:
    """Tracks and problems of one collection, gathered into Arrow batches to stay small."""

    collection: str
    root: str
    batches: list[pa.RecordBatch] = field(default_factory=list)
    problems: list[tuple[str, str, str, str]] = field(default_factory=list)
    _paths: list[str] = field(default_factory=list)
    _uris: list[str | None] = field(default_factory=list)
    _labels: list[str | None] = field(default_factory=list)
    _numbers: "array[int]" = field(default_factory=lambda: array("q"))

    def track(
        self, path: str, size: int, mtime_ns: int, labels: str | None = None, uri: str | None = None
    ) -> None:
        """Add a track by its path below the root, by an absolute path, or by a name and its URL."""
        self._paths.append(path)
        self._uris.append(uri)
        self._labels.append(labels)
        self._numbers.extend((size, mtime_ns))
        if len(self._paths) == _BATCH:
            self.flush()

    def problem(self, path: str, uri: str, reason: str) -> None:
        """Add a problem; bytes that are no UTF-8 are written out in hexadecimal."""
        track_id = f"{self.collection}/{path.lstrip('/')}"
        self.problems.append((_printable(track_id), self.collection, _printable(uri), reason))

    def usable(self, path: str, uri: str, status: os.stat_result, labels: str | None = None) -> None:
        """Add a track if its status is that of a file with content, else a problem."""
        kind = stat.S_IFMT(status.st_mode)
        if kind != stat.S_IFREG:
            self.problem(path, uri, f"not a regular file but {_TYPES.get(kind, 'something else')}")
        elif status.st_size == 0:
            self.problem(path, uri, "empty file")
        elif not is_utf8(path):
            self.problem(path, uri, "the name is not valid UTF-8; rename the file")
        else:
            self.track(path, status.st_size, status.st_mtime_ns, labels)

    def flush(self) -> None:
        """Turn what was gathered into a batch."""
        if not self._paths:
            return
        root = "" if self.root == "/" else self.root
        paths, text = self._paths, pa.large_string()
        uris = [
            uri or (path if path.startswith("/") else f"{root}/{path}")
            for path, uri in zip(paths, self._uris, strict=True)
        ]
        sizes, mtimes_ns = np.array(self._numbers, dtype=np.int64).reshape(-1, 2).T
        self.batches.append(
            pa.record_batch(
                [
                    pa.array([f"{self.collection}/{path.lstrip('/')}" for path in paths], text),
                    pa.repeat(pa.scalar(self.collection, text), len(paths)),
                    pa.array(uris, text),
                    pa.array(sizes, pa.int64()),
                    pa.array(mtimes_ns, pa.int64()),
                    pa.array(self._labels, text),
                ],
                schema=TRACKS,
            )
        )
        self._paths.clear()
        self._uris.clear()
        self._labels.clear()
        del self._numbers[:]


def is_utf8(text: str) -> bool:
    """Whether a path is text, not bytes that the file system let through (surrogates)."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(path: str) -> str:
    return path if is_utf8(path) else os.fsencode(path).decode("utf-8", "backslashreplace")


def reason(error: OSError) -> str:
    """What the system says of an error."""
    return error.strerror or type(error).__name__
