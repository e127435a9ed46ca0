"""Files on an S3 server and on a web server of this machine: looked at, fetched, and found broken."""

import hashlib
import re
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import S3Store

from pipeline import remote_files
from pipeline.errors import AudioError
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
            if "denied" in site.faults:
                return self.refuse(403)
            if path.startswith("/moved"):
                return self.refuse(302, Location=path.removeprefix("/moved"))
            if content is None:
                return self.refuse(404)
            if self.headers.get("If-Match", site.tag) != site.tag:
                return self.refuse(412)
            self.send_response(206 if wanted and "no ranges" not in site.faults else 200)
            if wanted and "no ranges" not in site.faults:
                first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
                self.send_header(
                    "Content-Range", f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
                )
                content = content[first : last + 1]
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
                self.wfile.write(content)
                if "changes" in site.faults:
                    site.tag = '"two"'
                if "changes weakly" in site.faults:
                    site.tag = 'W/"two"'

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
    with pytest.raises(AudioError) as error, local_copy(f"{site.url}/b.ogg?sig=secret"):
        pass
    assert str(error.value) == f"{site.url}/b.ogg: there is no such file (fetch)"


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
