"""What README and docs show runs as printed; links and names exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipeline
from pipeline.catalog import load_catalog
from pipeline.cluster import WORKER_ENVIRONMENT
from pipeline.definitions import AudioDefinition, CnnDefinition, LogMelDefinition, MfccDefinition
from pipeline.sample import write_sample_collection

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}
RUN = ("store.md", "features.md", "python.md", "training.md")
COMMANDS = re.findall(r"^\| [^|]* ?\| `(mirstore [^`]+)` \|$", README, flags=re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of the README has: the default catalog, and music under the names it uses."""
    folder = tmp_path_factory.mktemp("reader")
    text = (ROOT / "catalog.yaml").read_text(encoding="utf-8").replace("./demo/music", "./music")
    line = next(line for line in text.splitlines() if "path: ./music" in line)
    (folder / "catalog.yaml").write_text(text.replace(line, f"{line}\n  mine: {{path: ./mine}}"))
    for collection, name in (("music", "Nebula.ogg"), ("mine", "some song.ogg")):
        songs = write_sample_collection(folder / collection, n_songs=3, seed=len(name), duration_s=32.0)
        songs[0].path.rename(songs[0].path.with_name(name))
    (folder / "tags.csv").write_text("track_id,mood\nmine/some song.ogg,calm\n")
    return folder


def test_the_commands_run_in_the_order_in_which_they_stand(readers_folder: Path) -> None:
    assert len(COMMANDS) >= 9
    for command in COMMANDS:
        words = shlex.split(command)
        run = subprocess.run(
            [Path(sys.executable).with_name(words[0]), *words[1:]],
            cwd=readers_folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, (command, run.stderr)
        assert run.stdout.strip(), command
    assert (readers_folder / "page.png").exists()
    assert (readers_folder / "catalog.schema.json").exists()


def test_the_python_runs_as_printed(readers_folder: Path) -> None:
    code = blocks(README, "python") + [block for name in RUN for block in blocks(PAGES[name], "python")]
    assert len(code) == 7
    script = readers_folder / "readme.py"
    script.write_text(
        'if __name__ == "__main__":\n' + "".join(f"    {line}\n" for line in "\n".join(code).splitlines())
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", script.name],
        cwd=readers_folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_the_catalogs_load(tmp_path: Path) -> None:
    [own] = blocks(README, "yaml")
    (tmp_path / "songs.csv").write_text("uri\n")
    (tmp_path / "catalog.yaml").write_text(own.replace("~/Music", "."))
    features = load_catalog(tmp_path / "catalog.yaml").resolved_features()
    # The README's short form and the repository's written-out catalog are the same features.
    default = load_catalog(ROOT / "catalog.yaml").resolved_features()
    assert {f.fingerprint for f in features.values()} == {f.fingerprint for f in default.values()}

    local, remote = blocks(PAGES["catalog.md"], "yaml")
    (tmp_path / "local.yaml").write_text(local)
    assert set(load_catalog(tmp_path / "local.yaml").collections) == {"mine", "vinyl", "tagged"}
    (tmp_path / "remote.yaml").write_text(remote)
    assert load_catalog(tmp_path / "remote.yaml").store == "s3://bucket/prefix"

    [published] = blocks(PAGES["features.md"], "yaml")
    document: dict[str, Any] = yaml.safe_load(own)
    document["features"].update(yaml.safe_load(published))
    (tmp_path / "catalog.yaml").write_text(yaml.safe_dump(document))
    features = load_catalog(tmp_path / "catalog.yaml").resolved_features()
    assert features["tags_choi"].row_shape == (256,)
    assert features["mood_mtg"].row_shape == (64,)


def test_the_table_of_features_has_every_parameter_and_default() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.*?) \| \(", PAGES["features.md"], flags=re.MULTILINE))
    kinds = {
        "audio": AudioDefinition,
        "log_mel": LogMelDefinition,
        "mfcc": MfccDefinition,
        "cnn": CnnDefinition,
    }
    assert table.keys() == kinds.keys()
    for kind, definition in kinds.items():
        shown: dict[str, Any] = {}
        for parameter in re.findall(r"`(\w+:[^`]*)`", table[kind]):
            shown |= yaml.safe_load(parameter)
        defaults = {name: field.default for name, field in definition.model_fields.items()}
        del defaults["kind"]
        defaults.pop("from_", None)
        if kind == "cnn":
            del defaults["dtype"]  # there is no choice
        assert shown == defaults


def test_every_function_has_its_command() -> None:
    table = re.findall(r"^\| `(.+?)` \| `(.+?)` \|", PAGES["python.md"], flags=re.MULTILINE)
    named = {name for _, cell in table for name in re.findall(r"\b(\w+)\(", cell)} - {"at"}
    assert named == set(pipeline.__all__) - {"FeatureStore", "load_catalog"}
    assert all(callable(getattr(pipeline, name)) for name in pipeline.__all__)


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_workers_elsewhere_get_the_environment_of_those_here() -> None:
    [block] = [block for block in blocks(PAGES["machines.md"], "sh") if "export" in block]
    exported = dict(re.findall(r"(\w+)=(\S+)", block))
    assert exported.pop("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED") == "False"
    assert exported == WORKER_ENVIRONMENT
    for code in blocks(PAGES["machines.md"], "python"):
        compile(code, "machines.md", "exec")


def test_nothing_is_left_to_fill_in() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"):
        text = page.read_text(encoding="utf-8")
        prose = re.sub(
            r"^```.*?^```$|`[^`]*`", "", text, flags=re.MULTILINE | re.DOTALL
        )  # variables are no gaps
        assert not re.findall(r"\b[A-Z]{3,}_[A-Z_]{3,}\b|\bTODO\b", prose), page
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / link).exists(), (page, link)
