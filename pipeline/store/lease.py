"""One writer at a time in a bucket: a lease on a lock object.

Creating an object only if there is none, and replacing it only if it is still the one that was read, are
atomic on S3, Google Cloud Storage and Azure. The holder renews its object every few seconds; one that has
not been renewed for `LEASE_S`, or whose process on this machine is dead, may be taken over. Ages are
differences of the bucket's own clock, so machines' clocks need not agree.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pipeline.errors import StoreLockedError

if TYPE_CHECKING:
    from pipeline.store.bucket import Bucket

KEY = "lock.json"
LEASE_S = 60.0
RENEWALS_A_LEASE = 4


def _process_space() -> str:
    """What must agree for a process number to mean the same process: machine, boot and container."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    return f"{socket.gethostname()}/{uuid.getnode()}"


def _is_dead_here(holder: dict[str, Any]) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    if holder.get("space") != _process_space() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


class Lease:
    """The lock of a store in a bucket, as a context manager.

    Parameters
    ----------
    bucket
        Where the store is.
    command
        What holds it, for the message others get.

    Raises
    ------
    StoreLockedError
        On entering, if another holds it.
    """

    def __init__(self, bucket: "Bucket", command: str) -> None:
        self._bucket = bucket
        self._command = command
        self._token = uuid.uuid4().hex
        self._e_tag: str | None = None
        self._renewed = 0.0
        self._lost = False
        self._renewals = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def check(self) -> None:
        """Raise `StoreLockedError` where the lease has been taken over, or could not be renewed in time."""
        if self._lost or time.monotonic() - self._renewed > LEASE_S:
            raise StoreLockedError(
                f"{self._bucket.url}: another command took the lock over while this one was out of reach. "
                "What was committed stays; run again to go on."
            )

    def _content(self) -> bytes:
        self._renewals += 1
        return json.dumps(
            {
                "command": self._command,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "space": _process_space(),
                "token": self._token,
                "renewals": self._renewals,
            }
        ).encode()

    def _put(self, mode: Any) -> bool:
        """Write the lock object on a condition; return whether it held."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        begun = time.monotonic()
        with self._bucket._writing(KEY):
            try:
                put = obstore.put(self._bucket.objects, KEY, self._content(), mode=mode)
            except (AlreadyExistsError, PreconditionError):
                return False
            except FileNotFoundError:
                if mode == "create":  # no such bucket
                    raise
                return False
        self._e_tag, self._renewed = put["e_tag"], begun
        return True

    def _bucket_time_s(self) -> float:
        """Return the bucket's own time, by writing something."""
        import obstore

        key = f"lock-{self._token}.json"
        with self._bucket._writing(key):
            obstore.put(self._bucket.objects, key, b"{}")
            now = obstore.head(self._bucket.objects, key)["last_modified"].timestamp()
            obstore.delete(self._bucket.objects, key)
        return float(now)

    def __enter__(self) -> Self:
        if not self._put("create"):
            self._take_over()
        self._thread.start()
        return self

    def _take_over(self) -> None:
        import obstore

        url = self._bucket.url
        try:
            with self._bucket._reading(KEY):
                found = obstore.get(self._bucket.objects, KEY)
                about, content = found.meta, bytes(found.bytes())
        except FileNotFoundError:  # released since
            if self._put("create"):
                return
            raise StoreLockedError(
                f"{url} is being written by another command. Wait for it to end."
            ) from None
        try:
            holder = json.loads(content)
            who = f"`{holder['command']}` (process {holder['pid']} on {holder['host']})"
        except (ValueError, KeyError, TypeError):
            holder, who = {}, "another command"
        idle_s = self._bucket_time_s() - about["last_modified"].timestamp()
        free = _is_dead_here(holder) or idle_s > LEASE_S
        if not free or not self._put({"e_tag": about["e_tag"]}):
            raise StoreLockedError(
                f"{url} is being written by {who}. Wait for it to end; "
                f"if it was killed, its lock is free {LEASE_S:.0f} s after its last sign of life."
            )

    def _renew(self) -> None:
        while not self._ended.wait(LEASE_S / RENEWALS_A_LEASE):
            # A failed renewal is tried again at the next; `check` looks at the time of the last one.
            with contextlib.suppress(Exception):
                if not self._put({"e_tag": self._e_tag}):
                    self._lost = True
                    return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import obstore

        self._ended.set()
        self._thread.join()
        # There is no delete on a condition; renewing it first tells whether it is still this one's.
        if not self._lost:
            with contextlib.suppress(Exception):
                if self._put({"e_tag": self._e_tag}):
                    obstore.delete(self._bucket.objects, KEY)
