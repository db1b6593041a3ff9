"""Facts about other manifests: where they may come from, and what their sources then mean."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from clseg.errors import OfflineError, UsageError, WeightsError
from clseg.manifest import Asset, Manifest
from clseg.weights import download as download_module
from clseg.weights import sources as module
from clseg.weights.cache import manifest
from clseg.weights.sources import Sources, read_listing
from tests.weights_server import WeightsServer, serve

SHA = "a" * 64


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightsServer]:
    monkeypatch.setattr(download_module, "PAUSES_S", (0, 0, 0))
    with serve() as server:
        yield server


def listing(*sources: str) -> bytes:
    """A manifest with one encoder and these sources, as text."""
    encoder = Asset("enc", "encoder", "x/enc.bin", 7, SHA, "MIT", sources)
    return json.dumps(Manifest((), (encoder,)).to_dict()).encode()


def test_a_file_takes_the_place_of_the_usual_list(tmp_path: Path):
    """Another manifest is used alone: its model is known, `starter` is not."""
    (tmp_path / "list.json").write_bytes(listing("a.bin"))
    other = manifest(sources=Sources(manifest=tmp_path / "list.json"))
    assert [asset.name for asset in other.assets] == ["enc"]
    assert other.asset("enc").folder == tmp_path


def test_a_manifest_that_is_read_is_taken_as_it_is(tmp_path: Path):
    """So that nothing is fetched twice in a run."""
    builtin = Manifest.builtin()
    assert manifest(sources=Sources(manifest=builtin)) is builtin


def test_a_missing_file_is_a_wrong_call(tmp_path: Path):
    """A name that is no file and no address ends with exit code 2."""
    with pytest.raises(UsageError, match="no manifest 'nowhere.json'"):
        read_listing("nowhere.json", home=tmp_path)


def test_sources_are_meant_from_the_address(server: WeightsServer, tmp_path: Path):
    """Relative sources lie beside the manifest's address; those on this machine are dropped, package and web stay."""
    server.files["/w/list.json"] = listing("assets/a b.bin", "file:///etc/passwd", "package:data/x", "https://h.org/x")
    got = read_listing(server.url("/w/list.json"), home=tmp_path)
    assert got.asset("enc").sources == (server.url("/w/assets/a%20b.bin"), "package:data/x", "https://h.org/x")


def test_without_a_network_the_copy_serves(server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What was read once from an address is there offline, with the same meaning, and no socket is opened."""
    server.files["/list.json"] = listing("a.bin")
    online = read_listing(server.url("/list.json"), home=tmp_path)
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    assert read_listing(server.url("/list.json"), home=tmp_path, offline=True) == online
    with pytest.raises(OfflineError, match="no copy is on this machine") as caught:
        read_listing(server.url("/other.json"), home=tmp_path, offline=True)
    assert str(tmp_path / "manifests") in caught.value.tip


def test_online_the_list_is_read_afresh(server: WeightsServer, tmp_path: Path):
    """A copy does not hide what the owner has changed."""
    server.files["/list.json"] = listing("a.bin")
    read_listing(server.url("/list.json"), home=tmp_path)
    server.files["/list.json"] = listing("b.bin")
    assert read_listing(server.url("/list.json"), home=tmp_path).asset("enc").sources == (server.url("/b.bin"),)


def test_a_cache_that_cannot_be_written_keeps_no_copy(server: WeightsServer, tmp_path: Path):
    """The manifest is used all the same."""
    server.files["/list.json"] = listing("a.bin")
    (tmp_path / "home").write_text("a file, not a folder")
    assert read_listing(server.url("/list.json"), home=tmp_path / "home").asset("enc").bytes == 7


@pytest.mark.parametrize(
    ("answers", "text", "sentence"),
    [
        (["missing"], b"", "answered 404"),
        (["gzip"], b"{}", "compressed"),
        (["busy"] * 4, b"", "4 attempts"),
        ([], b"<html>", "not JSON text"),
        ([], b"{}", "not usable: The manifest has no 'format'"),
        ([], b" " * 5000, "more than 4096 bytes"),
        (["nolength"], b" " * 5000, "more than 4096 bytes"),
    ],
)
def test_what_is_no_manifest_is_refused(server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[str], text: bytes, sentence: str):
    """Errors, login pages, other JSON and endless answers end in a sentence, and no copy of them is kept."""
    monkeypatch.setattr(module, "MANIFEST_BYTES", 4096)
    server.files["/list.json"] = text
    server.behave("/list.json", *answers)
    with pytest.raises(WeightsError, match=sentence):
        read_listing(server.url("/list.json"), home=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cut_manifest_is_asked_for_again(server: WeightsServer, tmp_path: Path):
    """Half a manifest is not taken for one."""
    server.files["/list.json"] = listing("a.bin")
    server.behave("/list.json", "cut", "reset-50", "busy")
    assert read_listing(server.url("/list.json"), home=tmp_path).asset("enc").bytes == 7
    assert len(server.requests) == 4


@pytest.mark.parametrize("url", ["http://example.org/list.json", "ftp://127.0.0.1/list.json", "file://host/list.json"])
def test_other_addresses_are_not_asked(url: str, tmp_path: Path):
    """A manifest cannot be checked by a hash, so the rules of addresses hold all the more."""
    with pytest.raises(WeightsError, match="is not fetched"):
        read_listing(url, home=tmp_path)


def test_redirects_follow_the_rules(server: WeightsServer, tmp_path: Path):
    """A manifest may not be redirected to another scheme."""
    server.redirects["/list.json"] = "file:///etc/passwd"
    with pytest.raises(WeightsError, match="refused"):
        read_listing(server.url("/list.json"), home=tmp_path)
