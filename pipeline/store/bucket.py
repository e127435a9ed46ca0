"""A store in a bucket: S3, Google Cloud Storage or Azure Blob Storage, by obstore.

Credentials come from the environment variables and places that the providers' own tools use
(``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``, ...).
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.errors import CatalogError, StoreAccessError, StoreWriteError
from pipeline.store.location import Location, Lock, Stored, native_buffer

if TYPE_CHECKING:
    import pyarrow as pa
    from zarr.abc.store import Store

MULTIPART_BYTES = 8 << 20


class Bucket(Location):
    """A prefix of a bucket.

    Parameters
    ----------
    url
        ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.

    Raises
    ------
    CatalogError
        If the URL names no bucket, or holds credentials.
    """

    listing_is_cheap = False

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if "@" in parts.netloc and not parts.scheme.startswith("abfs"):
            raise CatalogError(
                f"store {parts.scheme}://...: credentials do not belong into a URL. "
                "Set the environment variables of the provider instead."
            )
        if not parts.netloc or parts.query or parts.fragment:
            raise CatalogError(f"store {url}: expected {parts.scheme}://bucket/prefix.")
        self.url = url.rstrip("/")

    def __reduce__(self) -> tuple[type["Bucket"], tuple[str]]:
        return Bucket, (self.url,)

    @cached_property
    def objects(self) -> Any:
        """The bucket's client; its keys are below the prefix."""
        from obstore.store import from_url

        try:
            return from_url(self.url)
        except Exception as error:  # obstore has no base class for what configuration may lack
            raise StoreAccessError(f"{self.url}: cannot be used ({_first_line(error)}).") from error

    @contextmanager
    def _reading(self, key: str = "") -> Iterator[None]:
        import obstore.exceptions

        try:
            yield
        except FileNotFoundError:
            raise
        except (obstore.exceptions.BaseError, OSError) as error:
            raise StoreAccessError(
                f"cannot read {self.url}/{key}: {_reason(error)}. Check credentials, region and network."
            ) from error

    @contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        import obstore.exceptions

        try:
            yield
        except (obstore.exceptions.BaseError, OSError) as error:
            raise StoreWriteError(
                f"cannot write to {self.url}/{key}: {_reason(error)}. Check credentials, region and network."
            ) from error

    def read(self, key: str) -> bytes:
        import obstore

        with self._reading(key):
            return bytes(obstore.get(self.objects, key).bytes())

    def read_range(self, key: str, start: int, length: int) -> bytes:
        import obstore

        if not length:
            return b""
        with self._reading(key):
            return bytes(obstore.get_range(self.objects, key, start=start, length=length))

    def read_end(self, key: str, length: int) -> bytes:
        import obstore

        with self._reading(key):
            found = obstore.get(self.objects, key, options={"range": {"suffix": length}})
            return bytes(found.bytes())

    def native_file(self, key: str) -> "pa.NativeFile":
        return native_buffer(self.read(key))

    def exists(self, key: str) -> bool:
        import obstore

        with self._reading(key):
            try:
                obstore.head(self.objects, key)
            except FileNotFoundError:
                return False
            return True

    def write(self, key: str, content: bytes) -> None:
        import obstore

        with self._writing(key):
            obstore.put(self.objects, key, content)

    def writer(self, key: str) -> "_ObjectWriter":
        return _ObjectWriter(self, key)

    def names(self, prefix: str) -> list[str]:
        import obstore

        with self._reading(prefix):
            found = obstore.list_with_delimiter(self.objects, prefix or None)
        below = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return sorted({path.rstrip("/").rpartition("/")[2] for path in below})

    def walk(self, prefix: str) -> Iterator[Stored]:
        import obstore

        with self._reading(prefix):
            for batch in obstore.list(self.objects, prefix or None, chunk_size=1000):
                for entry in batch:
                    yield Stored(entry["path"], entry["size"], entry["last_modified"].timestamp())

    def delete(self, prefix: str) -> None:
        import obstore

        keys = [stored.key for stored in self.walk(prefix)]
        with self._writing(prefix):
            if not keys and self.exists(prefix):
                keys = [prefix]
            if keys:
                with suppress(FileNotFoundError):
                    obstore.delete(self.objects, keys)

    def sync(self, prefix: str) -> None:
        """An object is durable once its upload has ended."""

    def table(self, name: str) -> tuple[str, dict[str, str]]:
        return f"{self.url}/{name}", {}

    def zarr(self, prefix: str) -> "Store":
        from obstore.store import from_url
        from zarr.storage import ObjectStore

        return ObjectStore(from_url(f"{self.url}/{prefix}"), read_only=True)

    def prepare(self) -> None:
        """Nothing to make: prefixes are part of names."""

    @contextmanager
    def lock(self, command: str) -> Iterator[Lock]:
        """Hold the store for writing by a lease: an object that only one can create, renewed while held."""
        from pipeline.store.lease import Lease

        with Lease(self, command) as lease:
            yield lease


class _ObjectWriter:
    """A multipart upload: the object exists only once it is closed."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        import obstore

        self._bucket = bucket
        self._key = key
        with bucket._writing(key):
            self._file = obstore.open_writer(bucket.objects, key, buffer_size=MULTIPART_BYTES)

    def write(self, content: bytes) -> None:
        with self._bucket._writing(self._key):
            self._file.write(content)

    def close(self) -> None:
        with self._bucket._writing(self._key):
            self._file.close()

    def abandon(self) -> None:
        del self._file  # what was uploaded of it never becomes an object


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _reason(error: BaseException) -> str:
    """Return what a provider's error says, in a few words."""
    text = str(error)
    known = {
        "NoSuchBucket": "there is no such bucket",
        "InvalidAccessKeyId": "the access key is not known there",
        "SignatureDoesNotMatch": "the secret key does not match",
        "AccessDenied": "access is denied",
        "ExpiredToken": "the session token has expired",
        "Connection refused": "nothing answers at that address",
        "dns error": "the host name is not known",
        "169.254.169.254": "no credentials were found in the environment",
        "timed out": "no answer in time",
        "builder error": "the address is plain http, which needs AWS_ALLOW_HTTP=true",
    }
    for mark, words in known.items():
        if mark in text:
            return words
    return _first_line(error)
