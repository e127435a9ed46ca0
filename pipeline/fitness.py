"""Whether a process may compute for a run: a check that is sent to it as code.

A worker may have another mirstore or none, so nothing here is looked up on its side: the module
travels whole (cloudpickle, by value) and imports only the standard library and what Dask brings.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

CODE = ("features", "pipeline")


def unfitness(needs: dict[str, Any]) -> str | None:
    """Return why this process cannot be used, in one clause; None if it can.

    Parameters
    ----------
    needs
        What `own_needs` gave in the process that asks, and optionally ``store`` (a folder), ``lock`` (the
        content of its lock file) and ``files`` (audio files).
    """
    try:
        version = importlib.metadata.version("mirstore")
    except importlib.metadata.PackageNotFoundError:
        return "mirstore is not installed there"
    if version != needs["version"]:
        return f"it has mirstore {version}, this run is of {needs['version']}"
    for requirement, module in needs["packages"].items():
        lack = _lack(requirement, module)
        if lack:
            return lack
    code = code_digest()
    if code is None:
        return "mirstore cannot be imported there"
    if code != needs["code"]:
        return f"its mirstore {version} has other code than this run's; install the same on both"
    return _blindness(needs)


def _lack(requirement: str, module: str) -> str | None:
    """Return what is wrong with one package, of which `module` is to be importable."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        version = importlib.metadata.version(wanted.name)
        if importlib.util.find_spec(module) is None:
            return f"the package {wanted.name} cannot be imported there"
    except importlib.metadata.PackageNotFoundError:
        return f"the package {wanted.name} is not installed there"
    except (ImportError, ValueError):
        return f"the package {wanted.name} cannot be imported there"
    if not wanted.specifier.contains(version, prereleases=True):
        return f"it has {wanted.name} {version}, mirstore needs {wanted.specifier}"
    return None


def _blindness(needs: dict[str, Any]) -> str | None:
    """Return what this process does not see of the store and the songs."""
    if "store" in needs:
        store = Path(needs["store"])
        try:
            same = (store / ".lock").read_bytes() == needs["lock"]
        except OSError:
            same = False
        if not same:
            return f"it does not see the store {store}, which must be on a file system all machines share"
        if not os.access(store, os.W_OK | os.X_OK):
            return f"it may not write to the store {store}"
    for file in needs.get("files", ()):
        if not os.access(file, os.R_OK):
            return f"it cannot read {file}"
    return None


def code_digest() -> str | None:
    """Return a SHA-256 over mirstore's source files; None where they are not to be found."""
    digest = hashlib.sha256()
    for package in CODE:
        try:
            spec = importlib.util.find_spec(package)
        except ImportError:
            return None
        places = list(spec.submodule_search_locations or ()) if spec else []
        if not places:
            return None
        root = Path(places[0])
        for path in sorted(root.rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{package}/{path.relative_to(root).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def own_needs() -> dict[str, Any]:
    """Return what a process must have in common with this one: version, source and packages.

    Packages are those that mirstore's distribution requires; one that this process does not have as
    required is nothing to ask of others.
    """
    from packaging.requirements import Requirement

    modules: dict[str, str] = {}
    for module, distributions in importlib.metadata.packages_distributions().items():
        for name in map(_normal, distributions):
            if name not in modules or _normal(module) == name:
                modules[name] = module
    packages: dict[str, str] = {}
    for text in importlib.metadata.requires("mirstore") or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            module = modules.get(_normal(requirement.name), "")
            if _lack(text, module) is None:
                packages[text] = module
    return {"version": importlib.metadata.version("mirstore"), "code": code_digest(), "packages": packages}


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")
