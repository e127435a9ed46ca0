"""Files on an S3 server and on a web server of this machine: looked at, fetched, and found broken."""

import hashlib
import json
import re
import socket
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import formatdate
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import S3Store

from pipeline import remote_files
from pipeline.catalog import load_catalog
from pipeline.collections import Scan, scan
from pipeline.errors import AudioError, CatalogError
from pipeline.remote_files import (
    Status,
    Unreachable,
    content_hash,
    listing,
    local_copy,
    pieces,
    status,
    statuses,
)
from pipeline.urls import RemoteUrl, remote_url

MODIFIED_S = 1_700_000_000


@dataclass
class Site:
    """A web server's files, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: set[str] = field(default_factory=set)
    unavailable: int = 0  # requests to refuse with 503 before the next answer
    cut: int = 0  # bodies to break off
    tag: str = '"one"'
    requests: list[str] = field(default_factory=list)
    url: str = ""


def handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def refuse(self, code: int, **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def answer(self) -> None:
            wanted = self.headers.get("Range")
            site.requests.append(f"{self.command} {self.path}" + (f" {wanted}" if wanted else ""))
            path = unquote(self.path.split("?")[0])
            content = site.files.get(path)
            if site.unavailable:
                site.unavailable -= 1
                return self.refuse(503)
            if "no head" in site.faults and self.command == "HEAD":
                return self.refuse(405)
            if "denied" in site.faults or ("no get" in site.faults and self.command == "GET"):
                return self.refuse(403)
            if path.startswith("/moved"):
                return self.refuse(302, Location=path.removeprefix("/moved"))
            if content is None:
                return self.refuse(404)
            self.send_response(206 if wanted and "no ranges" not in site.faults else 200)
            if wanted and "no ranges" not in site.faults:
                first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
                self.send_header(
                    "Content-Range", f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
                )
                content = content[first : last if "short" in site.faults else last + 1]
            self.send_header("Content-Length", str(len(content)))
            if "no date" not in site.faults:
                self.send_header("Last-Modified", formatdate(MODIFIED_S, usegmt=True))
            self.send_header("ETag", site.tag)
            self.end_headers()
            if self.command == "GET":
                if site.cut:
                    site.cut -= 1
                    content = content[: len(content) // 2]
                    self.close_connection = True
                # Before the client has all of it: it may ask for the next piece over another connection.
                if "changes" in site.faults:
                    site.tag = '"two"'
                if "changes weakly" in site.faults:
                    site.tag = 'W/"two"'
                self.wfile.write(content)

    return Handler


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(site))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Small pieces, no waiting, and an own place for temporary files."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(remote_files, "PIECE", 1000)
    monkeypatch.setattr(remote_files, "_WAITS_S", (0.0, 0.0))
    monkeypatch.setitem(remote_files._RETRIES, "backoff", {"init_backoff": timedelta(milliseconds=1)})
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def content() -> bytes:
    return np.random.default_rng(0).bytes(3_500)


def whole(url: str) -> bytes:
    return b"".join(pieces(remote_url(url)))


def failure(url: str) -> str:
    with pytest.raises(Unreachable) as error:
        whole(url)
    return str(error.value)


# --- URLs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url", "name"),
    [
        ("s3://bucket/a b/c?d#e%20.ogg", "s3://bucket/a b/c?d#e%20.ogg", "a b/c?d#e%20.ogg"),
        ("GS://bucket/", "gs://bucket", ""),
        ("HTTPS://Host.Example:443/a%20b/ü.ogg", "https://host.example/a%20b/%C3%BC.ogg", "a b/ü.ogg"),
        ("https://host/a b.ogg?sig=a/b+c%3D#t=3", "https://host/a%20b.ogg?sig=a/b+c%3D", "a b.ogg"),
        ("http://127.0.0.1:8000/a%2Fb%20c", "http://127.0.0.1:8000/a%2Fb%20c", "a%2Fb%20c"),
        ("https://host//a//b.ogg", "https://host//a//b.ogg", "/a//b.ogg"),
        ("https://host/a%FF", "https://host/a%FF", "a%FF"),
        ("https://host/a%0Ab", "https://host/a%0Ab", "a%0Ab"),
    ],
)
def test_urls_are_read_and_named(text: str, url: str, name: str) -> None:
    assert str(remote_url(text)) == url
    assert remote_url(url) == remote_url(text)
    assert remote_url(text).name == name


@pytest.mark.parametrize(
    "text",
    [
        "ftp://host/a", "/a", "file:///a", "https://", "https:///a", "s3:///a", "https://host:port/a", "s3://b//a",
        "s3://b/../a", "https://h/%2e%2E/a", "https://h/a\nb", "https://user:pass@h/a", "s3://key@b/a",
    ],
)  # fmt: skip
def test_other_urls_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|cannot hold|Port") as error:
        remote_url(text)
    assert "pass" not in str(error.value).replace("password", "")


@given(st.text(st.characters(codec="utf-8"), max_size=20), st.text(st.characters(codec="utf-8"), max_size=20))
def test_different_web_paths_have_different_names(one: str, other: str) -> None:
    base = remote_url("https://host/x")
    urls = [base.below("_" + text) for text in (one, other)]
    assert (urls[0].name == urls[1].name) == (one == other)


# --- a web server ----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 999, 1000, 1001, 3500])
def test_a_file_comes_whole_in_ranges(site: Site, content: bytes, length: int) -> None:
    site.files["/a b/ü.ogg"] = content[:length]
    assert whole(f"{site.url}/a b/ü.ogg") == content[:length]
    asked = [request.split(" bytes=")[1] for request in site.requests]
    assert asked == [f"{start}-{start + 999}" for start in range(0, length, 1000)]


@pytest.mark.parametrize(
    "path", ["/x(1)+'&,;=.ogg", "/a/%2541", "/double//slash.ogg", "/%F0%9F%8E%B5~-_.ogg"]
)
def test_paths_arrive_as_they_are_written(site: Site, content: bytes, path: str) -> None:
    site.files[unquote(path)] = content
    assert whole(site.url + path) == content


def test_a_query_is_sent_and_never_shown(site: Site, content: bytes) -> None:
    site.files["/a.ogg"] = content
    assert whole(f"{site.url}/a.ogg?sig=s%2Fecret&b") == content
    assert {request.split()[1] for request in site.requests} == {"/a.ogg?sig=s%2Fecret&b"}
    signature = "".join(["sec", "ret"])  # so that it is not in the lines that a traceback quotes
    with pytest.raises(AudioError) as error, local_copy(f"{site.url}/b.ogg?sig={signature}"):
        pass
    assert str(error.value) == f"{site.url}/b.ogg: there is no such file (fetch)"
    assert signature not in "".join(traceback.format_exception(error.value))


def test_redirections_are_followed(site: Site, content: bytes) -> None:
    site.files["/a.ogg"] = content
    assert whole(f"{site.url}/moved/a.ogg") == content
    assert status(remote_url(f"{site.url}/moved/a.ogg")).size == len(content)


def test_status_without_reading(site: Site, content: bytes) -> None:
    site.files["/a.ogg"] = content
    url = remote_url(f"{site.url}/a.ogg")
    assert status(url) == Status(len(content), MODIFIED_S * 10**9)
    assert site.requests == ["HEAD /a.ogg"]
    site.faults = {"no head", "no date"}
    assert status(url) == Status(len(content), 0)
    assert site.requests[1:] == ["HEAD /a.ogg", "GET /a.ogg bytes=0-0"]


def test_a_server_that_stumbles_is_asked_again(site: Site, content: bytes) -> None:
    site.files["/a.ogg"] = content
    site.unavailable = 2
    assert whole(f"{site.url}/a.ogg") == content
    site.cut = 2
    assert whole(f"{site.url}/a.ogg") == content
    site.cut = 1_000
    assert "status" not in failure(f"{site.url}/a.ogg")
    site.cut, site.unavailable = 0, 1_000
    assert failure(f"{site.url}/a.ogg") == "the server answers 503 Service Unavailable"


def test_a_server_that_sends_less_than_it_says(site: Site, content: bytes) -> None:
    site.files["/a.ogg"] = content
    site.faults = {"short"}
    assert failure(f"{site.url}/a.ogg")


def test_a_server_without_ranges_sends_all(site: Site, content: bytes) -> None:
    site.files["/a.ogg"] = content
    site.faults = {"no ranges"}
    assert whole(f"{site.url}/a.ogg") == content
    site.cut = 1_000
    assert failure(f"{site.url}/a.ogg")


@pytest.mark.parametrize("fault", ["changes", "changes weakly"])
def test_a_file_that_changes_meanwhile(site: Site, content: bytes, fault: str) -> None:
    site.files["/a.ogg"] = content
    site.tag = 'W/"one"' if fault == "changes weakly" else '"one"'
    site.faults = {fault}
    assert failure(f"{site.url}/a.ogg") == "the file changed while it was read"


def test_what_cannot_be_had(site: Site) -> None:
    assert failure(f"{site.url}/none.ogg") == "there is no such file"
    site.faults = {"denied"}
    assert failure(f"{site.url}/none.ogg") == "access denied (403 Forbidden)"


@pytest.fixture
def dead() -> Iterator[str]:
    """Address at which nothing listens, and nothing else can start to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def test_a_host_that_is_down_is_given_up(site: Site, content: bytes, dead: str) -> None:
    site.files["/a.ogg"] = content
    urls = [remote_url(f"http://{dead}/{number}.ogg") for number in range(200)]
    found = list(statuses([*urls, remote_url(f"{site.url}/none"), remote_url(f"{site.url}/a.ogg")]))
    assert {str(error) for error in found[:-2]} == {"the host cannot be reached"}
    assert len({id(error) for error in found[:-2]}) <= 16  # the others were not even asked
    assert str(found[-2]) == "there is no such file"
    assert found[-1] == Status(len(content), MODIFIED_S * 10**9)


def test_local_copies(site: Site, content: bytes, quick: Path, tmp_path: Path) -> None:
    expected = hashlib.sha256(content).hexdigest()
    site.files["/a.ogg"] = content
    with local_copy(f"{site.url}/a.ogg") as (path, digest):
        assert Path(path).read_bytes() == content
        assert Path(path).parent == quick
        assert Path(path).suffix == ".ogg"
        assert digest == expected == content_hash(f"{site.url}/a.ogg")
    assert not list(quick.iterdir())
    site.faults = {"changes"}
    with pytest.raises(AudioError, match="changed while"), local_copy(f"{site.url}/a.ogg"):
        pass
    assert not list(quick.iterdir())
    (tmp_path / "a.ogg").write_bytes(content)
    with local_copy(str(tmp_path / "a.ogg")) as (path, digest):
        assert (path, digest) == (str(tmp_path / "a.ogg"), expected)
    assert (tmp_path / "a.ogg").exists()


# --- a bucket --------------------------------------------------------------------------------------


def test_a_bucket_is_listed_and_read(bucket: str, content: bytes, s3_log: Path) -> None:
    store = S3Store(bucket)
    names = ["a b.ogg", "ü/c%20d?e#f.ogg", "x/y/z.flac", "*~.wav"]
    for name in names:
        obstore.put(store, f"in/{name}", content)
    obstore.put(store, "inside.ogg", content)
    place = remote_url(f"s3://{bucket}/in/")
    found = dict(listing(place))
    assert sorted(found) == sorted(names)
    for name in names:
        stamp = obstore.head(store, f"in/{name}")["last_modified"]
        assert (
            found[name] == status(place.below(name)) == Status(len(content), int(stamp.timestamp()) * 10**9)
        )
    assert "GET" not in re.sub(r"GET /[^ ]*list-type", "", requests(s3_log, bucket))
    for name in names:
        assert b"".join(pieces(place.below(name))) == content
    everything = dict(listing(remote_url(f"s3://{bucket}")))
    assert sorted(everything) == sorted(["inside.ogg", *(f"in/{name}" for name in names)])


def requests(log: Path, bucket: str) -> str:
    return "\n".join(line for line in log.read_text().splitlines() if f" /{bucket}" in line)


def test_listings_have_more_than_one_page(bucket: str) -> None:
    store = S3Store(bucket)
    for number in range(1_005):
        obstore.put(store, f"{number}.ogg", b"x")
    assert len(dict(listing(remote_url(f"s3://{bucket}")))) == 1_005


def test_what_is_not_in_a_bucket(bucket: str) -> None:
    assert failure(f"s3://{bucket}/none.ogg") == "there is no such file"
    with pytest.raises(Unreachable, match=r"404 Not Found \(NoSuchBucket\)"):
        list(listing(RemoteUrl("s3", f"{bucket}-not", "")))


def test_without_credentials(bucket: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", site.url)  # in place of a cloud's own
    with pytest.raises(Unreachable, match="no credentials in the environment"):
        list(listing(RemoteUrl("s3", bucket, "")))


# --- collections -----------------------------------------------------------------------------------


def scanned(folder: Path, **collection: object) -> Scan:
    path = folder / "catalog.yaml"
    audio = {"audio": {"kind": "audio"}}
    path.write_text(
        json.dumps({"version": 1, "store": "s", "collections": {"t": collection}, "features": audio})
    )
    return scan(load_catalog(path))


def uris(found: Scan) -> dict[str, str]:
    return dict(zip(found.tracks["track_id"], found.tracks["uri"], strict=True))


def reasons(found: Scan) -> dict[str, str]:
    return dict(zip(found.problems["track_id"], found.problems["reason"], strict=True))


def test_a_prefix_is_a_folder(bucket: str, tmp_path: Path) -> None:
    store = S3Store(bucket)
    for name in ("a.ogg", "x/b.ogg", "x/live/c.ogg", "x/cover.jpg", "void.ogg"):
        obstore.put(store, f"in/{name}", b"" if name == "void.ogg" else b"x")
    urls = f"s3://{bucket}/in"
    found = scanned(tmp_path, path=f"{urls}/", exclude=["**/live/**"])
    assert uris(found) == {"t/a.ogg": f"{urls}/a.ogg", "t/x/b.ogg": f"{urls}/x/b.ogg"}
    assert reasons(found) == {"t/void.ogg": "empty file"}


def test_markers_of_folders_are_no_files(bucket: str, tmp_path: Path, s3: str) -> None:
    obstore.put(S3Store(bucket), "album.ogg/a.ogg", b"x")
    for key in ("album.ogg/", "none.ogg/"):  # obstore would drop the slash
        with closing(HTTPConnection(s3.removeprefix("http://"), timeout=300)) as server:
            server.request("PUT", f"/{bucket}/{key}")
            assert server.getresponse().status == 200
    found = scanned(tmp_path, path=f"s3://{bucket}", include=["**"])
    assert list(uris(found)) == ["t/album.ogg/a.ogg"]
    assert reasons(found) == {}


def test_buckets_that_cannot_be_listed(bucket: str, tmp_path: Path) -> None:
    obstore.put(S3Store(bucket), "in/a.ogg", b"x")
    told = r"catalog.yaml:1: collections.t.path: there is nothing below s3://.*/out. Correct the URL"
    with pytest.raises(CatalogError, match=told):
        scanned(tmp_path, path=f"s3://{bucket}/out")
    with pytest.raises(CatalogError, match=r"cannot be listed: the server answers 404 .*NoSuchBucket"):
        scanned(tmp_path, path=f"s3://{bucket}-not")


def test_manifests_name_files_anywhere(bucket: str, site: Site, tmp_path: Path) -> None:
    store = S3Store(bucket)
    for key in ("in/a b.ogg", "in/x/b.ogg", "out/c.ogg"):
        obstore.put(store, key, b"x")
    site.files = {"/d e.ogg": b"xx", "/void.ogg": b""}
    (tmp_path / "local.ogg").write_bytes(b"x")
    rows = [
        "a b.ogg", f"s3://{bucket}/in/x/b.ogg", f"s3://{bucket}/out/c.ogg", f"{site.url}/d%20e.ogg?sig=secret",
        "none.ogg", f"{site.url}/void.ogg",
    ]  # fmt: skip
    table = "uri,mood\n" + "".join(f"{row},calm\n" for row in rows)
    host = site.url.removeprefix("http://")
    expected = {
        "t/a b.ogg": f"s3://{bucket}/in/a b.ogg",
        "t/x/b.ogg": f"s3://{bucket}/in/x/b.ogg",
        f"t/{bucket}/out/c.ogg": f"s3://{bucket}/out/c.ogg",
        f"t/{host}/d e.ogg": f"{site.url}/d%20e.ogg?sig=secret",
    }
    broken = {"t/none.ogg": "there is no such file", f"t/{host}/void.ogg": "empty file"}
    (tmp_path / "songs.csv").write_text(table)
    obstore.put(store, "in/songs.csv", table.encode())
    obstore.put(store, "elsewhere/songs.csv", table.encode())
    for place in (
        {"manifest": "songs.csv", "root": f"s3://{bucket}/in/"},
        {"manifest": f"s3://{bucket}/in/songs.csv"},
        {"manifest": f"s3://{bucket}/elsewhere/songs.csv", "root": f"s3://{bucket}/in"},
    ):
        found = scanned(tmp_path, **place)
        assert uris(found) == dict(sorted(expected.items()))
        assert reasons(found) == broken
        assert set(found.tracks["labels"]) == {'{"mood": "calm"}'}
    assert found.tracks["mtime_ns"].min() > 10**18
    assert not [request for request in site.requests if request.startswith("GET")]


def test_manifests_on_web_servers(site: Site, tmp_path: Path) -> None:
    site.files = {
        "/in/songs.csv": b"uri\na b.ogg\nx/50%.ogg\n",
        "/in/a b.ogg": b"x",
        "/in/x/50%.ogg": b"x",
    }
    found = scanned(tmp_path, manifest=f"{site.url}/in/songs.csv?sig=secret")
    assert uris(found) == {
        "t/a b.ogg": f"{site.url}/in/a%20b.ogg",
        "t/x/50%25.ogg": f"{site.url}/in/x/50%25.ogg",
    }
    with pytest.raises(CatalogError, match=r"none\.csv: cannot be read: there is no such file") as error:
        scanned(tmp_path, manifest=f"{site.url}/in/none.csv?sig=secret")
    assert "secret" not in str(error.value)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a b.ogg").write_bytes(b"x")
    site.files["/in/songs.csv"] = b"uri\na b.ogg\n"
    found = scanned(tmp_path, manifest=f"{site.url}/in/songs.csv", root="here")
    assert uris(found) == {"t/a b.ogg": str(tmp_path / "here" / "a b.ogg")}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("https://me:secret@host/a.ogg", "row 2: uri: a URL cannot hold a user or a password."),
        ("ftp://host/a.ogg", "row 2: uri: expected a URL of s3, gs, az, https or http, got 'ftp'."),
        ("s3://bucket", "row 2: uri: 's3://bucket' names no file."),
        ("https://host/?sig=secret", "row 2: uri: 'https://host' names no file."),
        (
            "https://host/a.ogg?sig=secret\nhttps://host/a.ogg",
            "row 3: uri: 'https://host/a.ogg' is there already",
        ),
        (
            "https://host/a\nhttps://host/a?sig=secret",
            r"row 3: uri: 'https://host/a' \(apart from what follows",
        ),
        ("/etc/passwd", "row 2: uri: '/etc/passwd' is a file of this machine. Set 'root' to a folder"),
        ("file:///etc/passwd", "row 2: uri: '/etc/passwd' is a file of this machine."),
        ("../a.ogg", "row 2: uri: '../a.ogg' leads out of s3://bucket/in."),
    ],
)
def test_rows_that_are_refused(tmp_path: Path, rows: str, told: str) -> None:
    (tmp_path / "songs.csv").write_text(f"uri\n{rows}\n")
    with pytest.raises(CatalogError, match=told) as error:
        scanned(tmp_path, manifest="songs.csv", root="s3://bucket/in")
    assert "secret" not in str(error.value)


# --- extraction ------------------------------------------------------------------------------------


def upload(folder: Path, bucket: str) -> None:
    for path in folder.rglob("*.*"):
        obstore.put(S3Store(bucket), path.relative_to(folder).as_posix(), path)


def test_songs_of_a_bucket_are_those_of_a_folder(project: Any, bucket: str, s3_log: Path) -> None:
    upload(project.music, bucket)
    project.write_catalog(demo="./music", cloud=f"s3://{bucket}")
    report = project.extract()
    assert (report.failures, report.songs) == (0, 12)
    assert report.stage_s["fetch"] > 0
    rows = project.rows()
    local = {key: value for key, value in rows.items() if key[0].startswith("demo/")}
    assert {
        ("demo" + name[5:], feature): rows[name, feature] for name, feature in set(rows) - set(local)
    } == local
    tracks = project.store.tracks
    assert tracks["uri"]["cloud/long.ogg"] == f"s3://{bucket}/long.ogg"
    assert tracks["content_hash"]["cloud/long.ogg"] == tracks["content_hash"]["demo/long.ogg"]

    before = len(requests(s3_log, bucket))
    assert project.extract().songs == 0
    asked = requests(s3_log, bucket)[before:]
    assert [line for line in asked.splitlines() if line and "list-type=2" not in line] == []
    assert "list-type=2" in asked

    obstore.copy(S3Store(bucket), "long.ogg", "moved.ogg")
    obstore.delete(S3Store(bucket), ["long.ogg", "eight.wav"])
    obstore.put(S3Store(bucket), "native.flac", project.add_song("other.flac", seed=9))
    (project.music / "other.flac").unlink()
    assert project.plan() == {
        "cloud/moved.ogg": ("move", "moved, same content"),
        "cloud/eight.wav": ("mark gone", "the file is gone"),
        "cloud/native.flac": ("extract", "the file has changed"),
    }
    assert project.extract().failures == 0
    assert (
        project.store["logmel"].stored("cloud/eight.wav").tobytes()
        == rows["cloud/eight.wav", version(project)]
    )


def version(project: Any) -> str:
    fingerprint = project.store["logmel"].fingerprint
    return f"logmel@{fingerprint}"


def test_a_server_in_trouble_costs_no_features(empty_project: Any, site: Site) -> None:
    song = empty_project.add_song("a.flac").read_bytes()
    other = empty_project.add_song("b.flac", seed=1, seconds=4.0).read_bytes()
    site.files = {"/a.flac": song, "/b.flac": other}
    (empty_project.folder / "songs.csv").write_text(f"uri\n{site.url}/a.flac\n{site.url}/b.flac?sig=one\n")
    empty_project.write_catalog(web="./music")
    catalog = empty_project.catalog.read_text().replace("{path: ./music}", "{manifest: songs.csv}")
    empty_project.catalog.write_text(catalog)
    assert empty_project.extract().songs == 2
    name = f"web/{site.url.removeprefix('http://')}/a.flac"
    rows = empty_project.rows()

    site.faults = {"denied"}  # not even a look is had
    assert empty_project.extract().failures == 2
    assert set(empty_project.store.failures["reason"]) == {"access denied (403 Forbidden)"}
    assert empty_project.rows() == rows
    site.faults = set()
    assert {action for action, _ in empty_project.plan().values()} == {"update"}
    assert empty_project.extract().updated == 2

    site.files["/a.flac"] = other  # a song that is seen to have changed, and cannot be fetched
    site.faults = {"no get"}
    assert empty_project.extract().failures == 1
    assert empty_project.store.failures.loc[name].to_dict() == {
        "uri": f"{site.url}/a.flac", "stage": "fetch", "reason": "access denied (403 Forbidden)"
    }  # fmt: skip
    assert empty_project.rows() == rows
    site.faults = set()
    assert empty_project.plan() == {name: ("extract", "failed before, the file has changed")}
    assert empty_project.extract().songs == 1
    assert len(empty_project.store.failures) == 0
    assert empty_project.rows() != rows

    site.requests.clear()
    signed = (empty_project.folder / "songs.csv").read_text().replace("sig=one", "sig=two")
    (empty_project.folder / "songs.csv").write_text(signed)
    assert empty_project.extract().updated == 1  # another signature is the same song
    assert sorted(site.requests) == ["HEAD /a.flac", "HEAD /b.flac?sig=two"]
