"""URLs of files on other machines: which are understood, and how they are named. Nothing is opened here."""

import posixpath
import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote, urlsplit

BUCKETS = ("s3", "gs", "az")
WEB = ("https", "http")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_DEFAULT_PORTS = {"https": ":443", "http": ":80"}
_KEPT = "/%:@!$&'()*+,;=~"  # what a URL's path holds as it is, '%' of what is escaped already


@dataclass(frozen=True, slots=True)
class RemoteUrl:
    """A place on another machine.

    Parameters
    ----------
    scheme
        One of ``s3``, ``gs``, ``az``, ``https``, ``http``.
    host
        Bucket or container; for the web, host and port.
    path
        Key of an object, as it is; for the web, the escaped path. No slash at the start.
    query
        What stands behind the ``?`` of a web address; it may be a signature.
    """

    scheme: str
    host: str
    path: str
    query: str = ""

    def __str__(self) -> str:
        return f"{self.shown}?{self.query}" if self.query else self.shown

    @property
    def shown(self) -> str:
        """The URL for messages: without its query, which may be a secret."""
        return f"{self.scheme}://{self.host}/{self.path}".rstrip("/")

    @property
    def in_bucket(self) -> bool:
        """Whether it is in an object store, which can be listed."""
        return self.scheme in BUCKETS

    @property
    def name(self) -> str:
        """Path to read; different paths have different names."""
        if self.in_bucket or re.search("%2f|%25", self.path, re.IGNORECASE):
            return self.path
        try:
            decoded = unquote(self.path, errors="strict")
        except UnicodeDecodeError:
            return self.path
        return decoded if decoded.isprintable() else self.path

    @property
    def folder(self) -> "RemoteUrl":
        """The place that holds it."""
        return replace(self, path=posixpath.dirname(self.path), query="")

    def below(self, path: str) -> "RemoteUrl":
        """Place of a relative path, given as it is, not escaped."""
        escaped = path if self.in_bucket else quote(path, safe="/")
        return replace(self, path=f"{self.path}/{escaped}" if self.path else escaped)


def is_url(text: str) -> bool:
    """Return whether a text is a URL, of whatever kind, and no path."""
    return _SCHEME.match(text) is not None


def remote_url(text: str) -> RemoteUrl:
    """Return the parts of a URL of another machine; a slash at its end is dropped.

    Raises
    ------
    ValueError
        If it is of another kind or malformed, or holds a user or password; in words.

    Examples
    --------
    >>> remote_url("https://Music.example/a%20b.ogg?sig=1").name
    'a b.ogg'
    """
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else ""
    if not match or scheme not in (*BUCKETS, *WEB):
        raise ValueError(f"expected a URL of s3, gs, az, https or http, got {scheme or text!r}.")
    rest = text[match.end() :]
    host, _, path = rest.partition("/")
    if "@" in re.split(r"[?#]", host)[0]:
        raise ValueError("a URL cannot hold a user or a password. Credentials come from the environment.")
    if not rest.isprintable():
        raise ValueError("a URL cannot hold control characters.")
    query = ""
    if scheme in WEB:
        parts = urlsplit(f"{scheme}://{rest}")
        host = parts.netloc.lower().removesuffix(_DEFAULT_PORTS[scheme])
        path = quote(parts.path.removeprefix("/"), safe=_KEPT)
        query = quote(parts.query, safe=_KEPT + "?")
        parts.port  # noqa: B018 - raises if it is no number
    if not host:
        raise ValueError(f"expected {scheme}://{'bucket' if scheme in BUCKETS else 'host'}/path.")
    path = path.rstrip("/")
    segments = path.split("/") if path else []
    if any(unquote(segment) in (".", "..") for segment in segments) or (scheme in BUCKETS and "" in segments):
        raise ValueError("a URL's path cannot hold '.', '..' or nothing between its slashes.")
    return RemoteUrl(scheme, host, path, query)
