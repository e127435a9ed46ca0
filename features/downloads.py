"""Published weights by name: fetched once, verified by SHA-256, kept in a cache folder."""

import difflib
import hashlib
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from features.errors import WeightsError

_BLOCK_BYTES = 1 << 20
_MAX_BYTES = 1 << 28
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class PublishedWeights:
    """Where published weights lie, at a fixed commit, and what their bytes hash to.

    Parameters
    ----------
    url : str
        https (http and file are accepted too: mirrors).
    sha256 : str
        Of the file, in hexadecimal.
    file_name : str
        In the cache folder; its suffix tells the format.
    variant : str
        Network that the weights were published for.
    licence : str
        SPDX name of the repository's licence.
    """

    url: str
    sha256: str
    file_name: str
    variant: str
    licence: str


_RAW = "https://raw.githubusercontent.com"

PUBLISHED: Mapping[str, PublishedWeights] = {
    "choi2016-msd": PublishedWeights(
        url=f"{_RAW}/keunwoochoi/music-auto_tagging-keras/d59ea0dbd8a90b75c824aae8c837eaee7b3298b3"
        "/data/cnn_weights_theano.h5",
        sha256="81ca5b24278ca7de74630d3f29483c2d63cef1e8f37934e1d6a0e439e912fb8b",
        file_name="choi2016-msd.h5",
        variant="choi2016",
        licence="MIT",
    ),
    "jamendo-fcn": PublishedWeights(
        url=f"{_RAW}/MTG/mtg-jamendo-dataset/ab2cc39cf1f0d6b622e676a14096706a1b24915e"
        "/scripts/baseline/models/best_model.pth",
        sha256="c1d6bee6bc25d78b28cea52bde68a353b3e674687171a78af020fa039d3cbdbe",
        file_name="jamendo-fcn.pth",
        variant="jamendo_fcn",
        licence="Apache-2.0",
    ),
}


def cache_folder() -> Path:
    """Folder of downloaded weights: $MIRSTORE_CACHE, or ~/.cache/mirstore/weights."""
    chosen = os.environ.get("MIRSTORE_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "mirstore" / "weights"


def published(name: str) -> PublishedWeights:
    """Entry of `PUBLISHED`, or a WeightsError that names the nearest."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    near = difflib.get_close_matches(name, PUBLISHED, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known names are {', '.join(PUBLISHED)}."
    raise WeightsError(f"{name!r} is neither a weights file, nor random:<seed>, nor a published name; {hint}")


def downloaded(entry: PublishedWeights, folder: Path | None = None) -> Path:
    """Verified local copy of published weights, fetched unless the cache has it.

    The file appears under its name only after its SHA-256 was right, by an atomic rename, so that several
    processes may ask at once. A cached copy is verified each time and fetched anew if it is damaged.

    Parameters
    ----------
    entry : PublishedWeights
        What to fetch.
    folder : Path, optional
        Cache folder; `cache_folder()` unless given.

    Raises
    ------
    WeightsError
        Without network, for another SHA-256, or if the folder cannot be written.
    """
    path = (folder or cache_folder()) / entry.file_name
    try:
        if path.is_file() and _file_sha256(path) == entry.sha256:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{entry.file_name}.", dir=path.parent)
    except OSError as error:
        raise WeightsError(
            f"Cannot use the weights cache for {entry.file_name} ({error.strerror}); "
            "set MIRSTORE_CACHE to a folder that can be written."
        ) from error
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            found = _fetch(entry.url, file.write)
        if found != entry.sha256:
            raise WeightsError(
                f"{entry.url} gave SHA-256 {found}, expected {entry.sha256}; nothing was kept: "
                "try again, or fetch the file by hand and name its path."
            )
        partial.chmod(0o644)  # mkstemp's 0600 would shut out others who share the cache
        partial.replace(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise WeightsError(
            f"Could not download {entry.url} ({reason}); "
            f"fetch it elsewhere and put it at {path}, or name where it is."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _fetch(url: str, write: Callable[[bytes], int]) -> str:
    if urllib.parse.urlsplit(url).scheme not in {"https", "http", "file"}:
        raise WeightsError(f"Weights are fetched by https, http or file, got {url}; mend the address.")
    digest, size = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 (scheme checked above)
        while block := answer.read(_BLOCK_BYTES):
            size += len(block)
            if size > _MAX_BYTES:
                raise WeightsError(f"{url} gives more than {_MAX_BYTES >> 20} MB; it is not a weights file.")
            digest.update(block)
            write(block)
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
