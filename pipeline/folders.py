"""One walk of a folder's tree that opens no file."""

import errno
import os
import stat

from pipeline.found import Found, is_utf8, reason
from pipeline.globs import PathFilter


class FolderWalk:
    """One walk of a tree: every folder once, real folders before links to them."""

    def __init__(self, found: Found, wanted: PathFilter) -> None:
        self.found = found
        self.matches = wanted.matches
        self.descends = wanted.descends
        self.visited: dict[tuple[int, int], str] = {}
        self.folders: list[str] = [""]
        self.links: list[str] = []

    def run(self) -> None:
        """Give tracks and problems to what was found."""
        while self.folders or self.links:
            # A link waits until every real folder is read, so that a track keeps its real name
            # whatever links come and go.
            linked = not self.folders
            if linked:
                self.links.sort(reverse=True)
            self._folder((self.links if linked else self.folders).pop(), linked=linked)

    def _folder(self, path: str, *, linked: bool) -> None:
        found, matches = self.found, self.matches
        uri = os.path.join(found.root, path) if path else found.root
        below: list[str] = []
        try:
            status = os.stat(uri)
            if self._seen(path, uri, status, linked=linked):
                return
            if not is_utf8(path):
                found.problem(f"{path}/", uri, "the folder's name is not valid UTF-8; rename it")
                return
            prefix = f"{path}/" if path else ""
            with os.scandir(uri) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if entry.is_symlink():
                        self._link(name, entry)
                    elif entry.is_dir(follow_symlinks=False):
                        if self.descends(name):
                            below.append(name)
                    elif matches(name):
                        self._file(name, entry)
        except OSError as error:
            found.problem(f"{path}/" if path else "", uri, f"folder cannot be listed: {reason(error)}")
        below.sort(reverse=True)
        self.folders += below

    def _seen(self, path: str, uri: str, status: os.stat_result, *, linked: bool) -> bool:
        """Whether a folder was read before; a link to a folder above itself is told as a problem."""
        first = self.visited.setdefault((status.st_dev, status.st_ino), path)
        if first == path:
            return False
        target = os.path.join(os.path.realpath(uri), "")
        above = os.path.join(os.path.realpath(os.path.dirname(uri)), "")
        if linked and above.startswith(target):
            self.found.problem(path, uri, "symlink loop: leads back to a folder above it")
        return True

    def _file(self, path: str, entry: os.DirEntry[str]) -> None:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # deleted since the folder was listed
            return
        except OSError as error:
            self.found.problem(path, entry.path, reason(error))
            return
        self.found.usable(path, entry.path, status)

    def _link(self, path: str, entry: os.DirEntry[str]) -> None:
        try:
            status = entry.stat()
        except OSError as error:
            # What a broken link led to is unknown: without an ending it may have been a folder.
            if self.matches(path) or (self.descends(path) and not os.path.splitext(path)[1]):
                self.found.problem(path, entry.path, link_reason(error))
            return
        if stat.S_ISDIR(status.st_mode):
            if self.descends(path):
                self.links.append(path)
        elif self.matches(path):
            self.found.usable(path, entry.path, status)


def link_reason(error: OSError) -> str:
    """Why a symlink leads nowhere."""
    if error.errno == errno.ELOOP:
        return "symlink loop"
    return "broken symlink" if isinstance(error, FileNotFoundError) else f"symlink: {reason(error)}"
