"""Facts about fetching one file from a server that may misbehave."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clseg.errors import WeightsError
from clseg.weights import download as module
from clseg.weights.download import download, shown
from tests.weights_server import WeightsServer, serve

DATA = bytes(range(256)) * 40
SHA = hashlib.sha256(DATA).hexdigest()
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def one_server() -> Iterator[WeightsServer]:
    with serve() as server:
        yield server


@pytest.fixture
def server(one_server: WeightsServer, monkeypatch: pytest.MonkeyPatch) -> WeightsServer:
    """A server with DATA at /a.bin and no memory of earlier tests; pauses are not waited for."""
    monkeypatch.setattr(module, "PAUSES_S", (0, 0, 0))
    monkeypatch.setattr(module, "CHUNK_BYTES", 1024)
    one_server.start_over({"/a.bin": DATA})
    return one_server


def get(server: WeightsServer, to: Path, path: str = "/a.bin", **changes: object) -> None:
    download(server.url(path), to, **{"expected_bytes": len(DATA), "expected_sha256": SHA, **changes})


def ranges(server: WeightsServer) -> list[str | None]:
    return [wanted for _, wanted in server.requests]


def test_the_file_arrives(server: WeightsServer, tmp_path: Path):
    """A good answer becomes the file, alone in its folder, and progress ends at all bytes."""
    calls = []
    get(server, tmp_path / "a", progress=lambda *call: calls.append(call))
    assert (tmp_path / "a").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["a"]
    assert calls[-1] == (len(DATA), len(DATA))
    assert calls == sorted(calls)


@pytest.mark.parametrize(
    "answers",
    [["busy"], ["busy", "busy", "busy"], ["nolength"], ["cut", "norange"], ["cut", "norange-206"], ["cut"] * 3],
)
def test_passing_trouble_is_overcome(server: WeightsServer, tmp_path: Path, answers: list[str]):
    """Up to three bad answers of a kind that may pass are followed by another attempt."""
    server.behave("/a.bin", *answers)
    get(server, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["a"]


def test_an_interrupted_transfer_goes_on(server: WeightsServer, tmp_path: Path):
    """After half a file only the other half is asked for."""
    server.behave("/a.bin", "cut")
    get(server, tmp_path / "a")
    assert ranges(server) == [None, f"bytes={len(DATA) // 2}-"]


def test_a_server_without_ranges_sends_all_again(server: WeightsServer, tmp_path: Path):
    """When the server answers a Range request with the whole file, the first half is not kept twice."""
    server.behave("/a.bin", "cut", "norange")
    get(server, tmp_path / "a")
    assert len(server.requests) == 2
    assert (tmp_path / "a").read_bytes() == DATA


def test_the_next_call_goes_on(server: WeightsServer, tmp_path: Path):
    """What arrived before a call gave up is not asked for again by the next call."""
    server.behave("/a.bin", "cut", *["busy"] * 4)
    with pytest.raises(WeightsError, match=r"4 attempts: the server answered 503"):
        get(server, tmp_path / "a")
    assert os.listdir(tmp_path) == ["a.part"]
    get(server, tmp_path / "a")
    assert ranges(server)[-1] == f"bytes={len(DATA) // 2}-"
    assert os.listdir(tmp_path) == ["a"]


def test_a_wrong_beginning_is_not_kept(server: WeightsServer, tmp_path: Path):
    """When what was there proves wrong the whole file is fetched again."""
    (tmp_path / "a.part").write_bytes(b"?" * 100)
    get(server, tmp_path / "a")
    assert ranges(server) == ["bytes=100-", None]
    assert (tmp_path / "a").read_bytes() == DATA


@pytest.mark.parametrize(("left", "requests"), [(DATA, 0), (DATA + b"+", 1)])
def test_a_full_part_file_needs_no_range(server: WeightsServer, tmp_path: Path, left: bytes, requests: int):
    """A part file that is already complete is used without a request; one that is too long starts over."""
    (tmp_path / "a.part").write_bytes(left)
    get(server, tmp_path / "a")
    assert ranges(server) == [None] * requests
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_busy_part_file_is_left_alone(server: WeightsServer, tmp_path: Path):
    """The part file of a process that may still write is not taken; one untouched for minutes is."""
    busy = tmp_path / "a.123-0123abcd.part"
    busy.write_bytes(DATA[:100])
    get(server, tmp_path / "a")
    assert sorted(os.listdir(tmp_path)) == ["a", busy.name]
    long_ago = time.time() - 2 * module.ABANDONED_S
    os.utime(busy, (long_ago, long_ago))
    get(server, tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    assert ranges(server) == [None, "bytes=100-"]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("wrong", f"expected sha256 {SHA}, got [0-9a-f]{{64}}; it was thrown away"),
        ("oversize", f"offers {len(DATA) + 1} bytes, the manifest says {len(DATA)}"),
        ("oversize-nolength", f"more than {len(DATA)} bytes"),
        ("missing", "answered 404"),
        ("gzip", "compressed"),
    ],
)
def test_a_bad_answer_is_refused(server: WeightsServer, tmp_path: Path, answer: str, sentence: str):
    """Wrong bytes, too many bytes and answers that will not get better end at once and leave nothing."""
    server.behave("/a.bin", answer)
    with pytest.raises(WeightsError, match=sentence) as caught:
        get(server, tmp_path / "a")
    assert server.url("/a.bin") in caught.value.message
    assert os.listdir(tmp_path) == []
    assert len(server.requests) == 1


def test_a_shorter_file_is_refused(server: WeightsServer, tmp_path: Path):
    """A server with a shorter file, a login page for instance, is told from a broken connection."""
    server.files["/a.bin"] = b"<html>"
    with pytest.raises(WeightsError, match="offers 6 bytes") as caught:
        get(server, tmp_path / "a")
    assert "login page" in caught.value.tip


def test_endless_cuts_give_up(server: WeightsServer, tmp_path: Path):
    """Halves of what is left count as headway down to a sixteenth of the file; three more and it is an error."""
    server.behave("/a.bin", "cut", always=True)
    with pytest.raises(WeightsError, match="in 7 attempts"):
        get(server, tmp_path / "a")
    assert len(server.requests) == 7
    assert not (tmp_path / "a").exists()


def test_a_dead_server_is_told(server: WeightsServer, tmp_path: Path):
    """Nobody listening is a WeightsError with a tip, not a stack of library errors."""
    with pytest.raises(WeightsError, match="connection failed") as caught:
        download("http://127.0.0.1:9/a.bin", tmp_path / "a", expected_bytes=1, expected_sha256=SHA)
    assert "proxy" in caught.value.tip


def test_redirects_on_this_machine_are_followed(server: WeightsServer, tmp_path: Path):
    """A relative redirect is followed, with the Range header kept."""
    server.redirects["/old"] = "/a.bin"
    (tmp_path / "a.part").write_bytes(DATA[:7])
    get(server, tmp_path / "a", "/old")
    assert server.requests == [("/old", "bytes=7-"), ("/a.bin", "bytes=7-")]


@pytest.mark.parametrize(
    "target", ["ftp://127.0.0.1/a", "http://192.0.2.1/a.bin", "file:///etc/passwd", "//192.0.2.1/a.bin", "https://"]
)
def test_redirects_elsewhere_are_refused(server: WeightsServer, tmp_path: Path, target: str):
    """A redirect to another scheme or to unencrypted http elsewhere is not followed."""
    server.redirects["/old"] = target
    with pytest.raises(WeightsError, match=r"redirects to .* refused"):
        get(server, tmp_path / "a", "/old")
    assert len(server.requests) == 1


def test_redirects_from_outside_to_this_machine_are_refused():
    """A server elsewhere may not make us ask servers of this machine."""
    with pytest.raises(WeightsError, match="may not send us to this machine"):
        module._redirected("https://example.org/a", "http://127.0.0.1:8080/admin")


def test_a_redirect_loop_ends(server: WeightsServer, tmp_path: Path):
    """A redirect to itself is given up after a few rounds."""
    server.redirects["/old"] = "/old"
    with pytest.raises(WeightsError, match="more than 5 times"):
        get(server, tmp_path / "a", "/old")
    assert len(server.requests) == 6


@pytest.mark.parametrize("url", ["http://example.org/a", "ftp://example.org/a", "file:///etc/passwd", "a.bin"])
def test_unsafe_addresses_are_not_asked(tmp_path: Path, url: str):
    """Addresses other than https and loopback http are refused before anything is opened."""
    with pytest.raises(WeightsError, match="is not fetched"):
        download(url, tmp_path / "a", expected_bytes=1, expected_sha256=SHA)


def test_secrets_do_not_show():
    """Password and signed query of an address stay out of messages."""
    assert shown("https://me:secret@example.org:8443/a.bin?token=secret#x") == "https://example.org:8443/a.bin"


def test_secrets_do_not_show_in_refusals(tmp_path: Path):
    """Not even when the address itself is the reason."""
    with pytest.raises(WeightsError) as caught:
        download("http://me:secret@example.org/a?token=secret", tmp_path / "a", expected_bytes=1, expected_sha256=SHA)
    assert "secret" not in caught.value.message


def test_this_machine_is_asked_without_proxy(server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A proxy of the environment is passed by for addresses on this machine."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    get(server, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_small_disk_is_seen_before_asking(server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """When the disk has too little room the server is not even asked."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(WeightsError, match=f"1 bytes free, {len(DATA)} are needed"):
        get(server, tmp_path / "a")
    assert server.requests == []


def test_a_full_disk_leaves_nothing(server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """When the disk runs full meanwhile, the part file is removed and the error says so."""
    monkeypatch.setattr(os, "fsync", _disk_full)
    with pytest.raises(WeightsError, match="No space left") as caught:
        get(server, tmp_path / "a")
    assert "Make room" in caught.value.tip
    assert os.listdir(tmp_path) == []


def _disk_full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not known on Windows")
def test_killed_half_way(server: WeightsServer, tmp_path: Path):
    """A process killed in the middle leaves nothing under the final name, and the next transfer succeeds."""
    server.behave("/a.bin", "stall")
    code = (
        "import sys; from pathlib import Path; from clseg.weights.download import download\n"
        f"download(sys.argv[1], Path(sys.argv[2]), expected_bytes={len(DATA)}, expected_sha256='{SHA}')"
    )
    child = subprocess.Popen([sys.executable, "-c", code, server.url("/a.bin"), str(tmp_path / "a")], cwd=ROOT)
    try:
        assert server.half_sent.wait(30)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        server.release.set()
    assert not (tmp_path / "a").exists()
    get(server, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(
            ["busy", "cut", "norange", "norange-206", "nolength", "oversize", "oversize-nolength", "wrong", "gzip"]
        ),
        max_size=6,
    )
)
def test_whatever_happens_the_final_name_is_right(
    server: WeightsServer, tmp_path_factory: pytest.TempPathFactory, answers: list[str]
):
    """Any series of bad answers ends with the right bytes or an error without a file, and a good server then suffices."""
    to = tmp_path_factory.mktemp("d") / "a"
    server.behave("/a.bin", *answers)
    try:
        get(server, to)
        assert to.read_bytes() == DATA
    except WeightsError:
        assert not to.exists()
    server.behave("/a.bin")
    get(server, to)
    assert to.read_bytes() == DATA
    assert os.listdir(to.parent) == ["a"]
