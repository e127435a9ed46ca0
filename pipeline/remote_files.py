"""Files on other machines: listed, looked at, and fetched in pieces. Bytes come by `obstore`.

Credentials are those of the environment (``AWS_*``, ``GOOGLE_*``, ``AZURE_*``), as obstore reads them, and no
message shows them or a URL's query.
"""

import hashlib
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pipeline.errors import AudioError
from pipeline.urls import RemoteUrl, is_url, remote_url

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import ObjectStore

PIECE = 4 << 20  # bytes of a request
_REQUESTS = 16  # at a time, while scanning
_WAITS_S = (0.2, 1.0, 5.0)  # before a piece that broke off is asked for again
_TIMEOUTS = {"timeout": "60s", "connect_timeout": "10s"}
_RETRIES: Any = {
    "max_retries": 3,
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 3},
    "retry_timeout": timedelta(seconds=90),
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Unreachable(Exception):  # noqa: N818 - becomes an error or a problem where it is known what was wanted
    """Why a remote file cannot be had, in one line; with `host_down`, why nothing of its host can."""

    def __init__(self, reason: str, *, host_down: bool = False) -> None:
        super().__init__(reason)
        self.host_down = host_down


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a file without its bytes; `mtime_ns` is 0 where the server tells none."""

    size: int
    mtime_ns: int


@contextmanager
def local_copy(uri: str) -> Iterator[tuple[str, str]]:
    """Path of a file on this machine, and the SHA-256 of its bytes.

    Parameters
    ----------
    uri
        A path, which is given back; or a URL, whose bytes are kept in a temporary file meanwhile.

    Raises
    ------
    AudioError
        At stage ``fetch``, if a remote file cannot be had whole.
    OSError
        If a local file cannot be read.
    """
    if not is_url(uri):
        yield uri, content_hash(uri)
        return
    # Decoders look at a name's ending.
    ending = re.search(r"\.[A-Za-z0-9]{1,8}$", remote_url(uri).path)
    with tempfile.NamedTemporaryFile(prefix="mirstore-", suffix=ending[0] if ending else "") as file:
        digest = hashlib.sha256()
        for piece in _audio_pieces(uri):
            digest.update(piece)
            try:
                file.write(piece)
                file.flush()
            except OSError as error:
                reason = f"its copy in {tempfile.gettempdir()} cannot be written: {error.strerror}"
                raise AudioError(remote_url(uri).shown, "fetch", reason) from error
        yield file.name, digest.hexdigest()


def content_hash(uri: str) -> str:
    """SHA-256 of a file's bytes, local or remote, 64 hex digits; raises what `local_copy` does."""
    if not is_url(uri):
        with open(uri, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for piece in _audio_pieces(uri):
        digest.update(piece)
    return digest.hexdigest()


def _audio_pieces(uri: str) -> Iterator[bytes]:
    url = remote_url(uri)
    try:
        yield from pieces(url)
    except Unreachable as error:
        raise AudioError(url.shown, "fetch", str(error)) from error


def pieces(url: RemoteUrl) -> Iterator[bytes]:
    """Bytes of a file, all of one version, in pieces of a few MB.

    Raises
    ------
    Unreachable
        If it is not there, not to be had, or changes meanwhile.
    """
    from obstore.exceptions import NotSupportedError

    with _explained():
        store, path = _located(url)
        try:
            first, content = _piece(store, path, 0)
        except NotSupportedError:  # a web server that knows no ranges
            yield from _stream(store, path)
            return
        yield content
        for start in range(PIECE, first["size"], PIECE):
            meta, content = _piece(store, path, start)
            # Not by If-Match, which weak tags never pass and many web servers do not know.
            if _version(meta) != _version(first):
                raise Unreachable("the file changed while it was read")
            yield content


def _version(meta: "ObjectMeta") -> tuple[object, ...]:
    return meta["size"], meta["e_tag"], meta["last_modified"]


def _piece(store: "ObjectStore", path: str, start: int) -> "tuple[ObjectMeta, bytes]":
    """One piece and what its answer says of the file; obstore asks again itself until an answer begins."""
    import obstore
    from obstore.exceptions import BaseError

    options: GetOptions = {"range": (start, start + PIECE)}
    for wait_s in (*_WAITS_S, None):
        answer: GetResult = obstore.get(store, path, options=options)
        try:
            content = bytes(answer.bytes())
        except BaseError:
            if wait_s is None:
                raise
        else:
            if len(content) == min(PIECE, answer.meta["size"] - start):
                return answer.meta, content
        if wait_s is not None:
            time.sleep(wait_s)
    raise Unreachable("the server sends less than it says")


def _stream(store: "ObjectStore", path: str) -> Iterator[bytes]:
    import obstore

    for content in obstore.get(store, path).stream(min_chunk_size=PIECE):
        yield bytes(content)


def listing(url: RemoteUrl) -> Iterator[tuple[str, Status]]:
    """Objects below a bucket's prefix at any depth: path from there, and status.

    Raises
    ------
    Unreachable
        If the bucket cannot be listed.
    """
    import obstore

    with _explained():
        store, prefix = _located(url)
        skipped = len(prefix) + 1 if prefix else 0
        for page in obstore.list(store, prefix or None, chunk_size=1000):
            for meta in page:
                yield meta["path"][skipped:], _status(meta)


def status(url: RemoteUrl) -> Status:
    """Size and modification time of a file, without its bytes.

    Raises
    ------
    Unreachable
        If it is not there or not to be had.
    """
    import obstore

    try:
        with _explained():
            store, path = _located(url)
            return _status(obstore.head(store, path))
    except Unreachable as error:
        if url.in_bucket or error.host_down:
            raise
    with _explained():  # servers that refuse HEAD, and addresses signed for GET alone
        return _status(obstore.get(store, path, options={"range": (0, 1)}).meta)


def statuses(urls: Sequence[RemoteUrl]) -> Iterator[Status | Unreachable]:
    """Status of each file in order, or why there is none; a host that is down is not asked again."""
    down: dict[tuple[str, str], Unreachable] = {}

    def one(url: RemoteUrl) -> Status | Unreachable:
        if error := down.get((url.scheme, url.host)):
            return error
        try:
            return status(url)
        except Unreachable as error:
            if error.host_down:
                down[url.scheme, url.host] = error
            return error

    executor = ThreadPoolExecutor(_REQUESTS)
    try:
        yield from executor.map(one, urls)
    finally:
        executor.shutdown(cancel_futures=True)


def _status(meta: "ObjectMeta") -> Status:
    return Status(meta["size"], (meta["last_modified"] - _EPOCH) // timedelta(microseconds=1) * 1000)


def _located(url: RemoteUrl) -> "tuple[ObjectStore, str]":
    """Store that holds a file, and its path there."""
    if url.in_bucket:
        return _bucket(url.scheme, url.host), url.path
    origin = f"{url.scheme}://{url.host}"
    # Only of plain paths is it certain that obstore asks for them as they are written.
    if not url.query and re.fullmatch(r"([A-Za-z0-9_.~-]|%20)+(/([A-Za-z0-9_.~-]|%20)+)*", url.path):
        return _web(origin), unquote(url.path)
    return _web.__wrapped__(str(url)), ""


@lru_cache(maxsize=64)
def _bucket(scheme: str, name: str) -> "ObjectStore":
    from obstore.store import AzureStore, GCSStore, S3Store

    kind: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[scheme]
    # Not `client_options`: those would take the place of the environment's AWS_ALLOW_HTTP.
    store: ObjectStore = kind(name, config=_TIMEOUTS, retry_config=_RETRIES)
    return store


@lru_cache(maxsize=64)
def _web(url: str) -> "ObjectStore":
    from obstore.store import HTTPStore

    plain = url.startswith("http:")  # where it is not, a redirection to http is refused too
    options: Any = {**_TIMEOUTS, "allow_http": plain}
    return HTTPStore(url, client_options=options, retry_config=_RETRIES)


@contextmanager
def _explained() -> Iterator[None]:
    """Have what obstore raises told in one line, without addresses and the answer's text."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError, ValueError) as error:
        raise _explanation(error) from None  # its text holds the whole URL


def _explanation(error: Exception) -> Unreachable:
    from obstore import exceptions

    text = str(error)
    code = re.search(r"status code: (\d{3}[ A-Za-z-]*)", text)
    s3_code = re.search(r"<Code>(\w{1,60})</Code>", text)
    # Without credentials in the environment, obstore asks for those of a cloud's machine.
    if re.search("latest/api/token|latest/meta-data|computeMetadata|metadata/identity", text):
        return Unreachable(
            "there are no credentials in the environment (AWS_*, GOOGLE_* or AZURE_* variables, such as "
            "AWS_ACCESS_KEY_ID; AWS_SKIP_SIGNATURE=true for a public bucket)",
            host_down=True,
        )
    if isinstance(error, FileNotFoundError) and not (code and code[1].startswith("405")):
        return Unreachable("there is no such file")
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        answer = code[1].strip() if code else "denied"
        return Unreachable(f"access denied ({answer}{', ' + s3_code[1] if s3_code else ''})")
    if code:
        return Unreachable(f"the server answers {code[1].strip()}{f' ({s3_code[1]})' if s3_code else ''}")
    if "certificate" in text.lower():
        return Unreachable("the host's TLS certificate is not accepted", host_down=True)
    if "kind: Connect" in text:
        return Unreachable("the host cannot be reached", host_down=True)
    if "kind: Timeout" in text:
        return Unreachable("the host does not answer in time", host_down=True)
    first = text.split("\n", 1)[0]
    return Unreachable(first.rsplit(" - ", 1)[-1] if "://" in first else first)
