"""Where a store is."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import CatalogError


def local_store(store: str | Path) -> Path:
    """Return the folder of a store on this machine's file system.

    Raises
    ------
    CatalogError
        If it is a URL of an object store.
    """
    text = str(store)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme == "file":
        return Path(unquote(urlsplit(text).path))
    if scheme:
        raise CatalogError(
            f"store {text}: stores on {scheme}:// cannot be written by this version. Name a folder."
        )
    return Path(text)
