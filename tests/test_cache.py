"""Facts about where weights come from and how they are kept, and about the environment that decides it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from clseg.environment import environment
from clseg.errors import OfflineError, UsageError, WeightsError
from clseg.manifest import Asset, Manifest
from clseg.progress import Advance, Progress
from clseg.weights import cache
from clseg.weights import download as download_module
from clseg.weights.cache import cached_path, fetch, locate
from tests.weights_server import WeightsServer, serve

DATA = b"weights" * 1000
BAD = b"w" * len(DATA)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def one_server() -> Iterator[WeightsServer]:
    with serve() as server:
        yield server


@pytest.fixture
def server(one_server: WeightsServer, monkeypatch: pytest.MonkeyPatch) -> WeightsServer:
    """A server with DATA at /a.bin and no memory of earlier tests; pauses are not waited for."""
    monkeypatch.setattr(download_module, "PAUSES_S", (0,))
    one_server.start_over({"/a.bin": DATA})
    return one_server


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """No test sees or fills the cache of the person who runs it."""
    for name in ("CLSEG_OFFLINE", "CLSEG_WEIGHTS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLSEG_HOME", str(tmp_path / "env-home"))


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch):
    """Every attempt to open a socket or look up a name fails the test."""

    def refused(*_: object, **__: object) -> None:
        pytest.fail("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refused)


def asset(*sources: str, folder: Path | None = None, **changes: object) -> Asset:
    facts = {"name": "enc", "kind": "encoder", "file": "x/a.bin", "bytes": len(DATA), "licence": "MIT"}
    return Asset(
        **{**facts, "sha256": hashlib.sha256(DATA).hexdigest(), "sources": sources, "folder": folder, **changes}
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the installed package."""
    folder = tmp_path / "package"
    (folder / "data").mkdir(parents=True)
    monkeypatch.setattr(cache, "files", lambda _: folder)
    return folder


def test_a_package_file_is_used_in_place(package: Path, tmp_path: Path, no_sockets: None):
    """Weights that ship with the package need neither cache nor network."""
    (package / "data/a.bin").write_bytes(DATA)
    assert fetch([asset("package:data/a.bin")], home=tmp_path / "home", offline=True) == {"enc": package / "data/a.bin"}
    assert not (tmp_path / "home").exists()


def test_the_builtin_weights_are_sound(no_sockets: None):
    """Every asset that ships inside the package has the listed sha256."""
    shipped = [one for one in Manifest.builtin().assets if any(s.startswith("package:") for s in one.sources)]
    assert list(fetch(shipped, offline=True)) == [one.name for one in shipped]


@pytest.mark.parametrize("damage", [BAD, DATA[:-1]])
def test_a_damaged_package_file_is_told(package: Path, tmp_path: Path, damage: bytes):
    """The error says which file, what was expected and found, what was done and what may be the reason."""
    (package / "data/a.bin").write_bytes(damage)
    with pytest.raises(WeightsError, match="nothing was loaded") as caught:
        fetch([asset("package:data/a.bin")], home=tmp_path / "home")
    got = hashlib.sha256(BAD).hexdigest() if damage == BAD else f"{len(damage)} bytes"
    assert all(text in caught.value.message for text in (str(package / "data/a.bin"), asset().sha256, got))
    assert "installing clseg again" in caught.value.tip
    assert str(cached_path(asset(), tmp_path / "home")) in caught.value.tip
    assert not isinstance(caught.value, OfflineError)


def test_local_sources_are_used_in_place(tmp_path: Path, no_sockets: None):
    """A path beside the manifest and a file:// address with blanks are used where they lie."""
    folder = tmp_path / "my weights"
    folder.mkdir()
    (folder / "a b.bin").write_bytes(DATA)
    for source in ("a b.bin", (folder / "a b.bin").as_uri()):
        assert fetch([asset(source, folder=folder)], offline=True) == {"enc": folder / "a b.bin"}


def test_a_manifest_knows_its_folder(tmp_path: Path, no_sockets: None):
    """A relative source of a manifest file is found beside that file."""
    (tmp_path / "a.bin").write_bytes(DATA)
    listed = {"format": 1, "models": {}, "assets": {"enc": asset("a.bin").to_dict()}}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    assert fetch(Manifest.read(tmp_path / "list.json").assets) == {"enc": tmp_path / "a.bin"}


def test_downloaded_once(server: WeightsServer, tmp_path: Path):
    """The second fetch takes the file from the cache, whose name begins with the sha256."""
    wanted = asset(server.url("/a.bin"))
    first = fetch([wanted], home=tmp_path)
    assert fetch([wanted], home=tmp_path) == first == {"enc": tmp_path / "weights" / f"{wanted.sha256[:16]}-a.bin"}
    assert first["enc"].read_bytes() == DATA
    assert len(server.requests) == 1


class Listener(Progress):
    """Notes the stages, what was done in each, and the warnings."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None, str]] = []
        self.steps: list[int] = []
        self.warnings: list[str] = []

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        self.stages.append((name, total, unit))
        yield self.steps.append

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_progress_counts_all_bytes(server: WeightsServer, tmp_path: Path):
    """Two files are one stage of the sum of their bytes, all of which are counted; without a download there is none."""
    server.files["/b.bin"] = BAD
    pair = [asset(server.url("/a.bin")), asset(server.url("/b.bin"), name="dec", file="b.bin", sha256=hashlib.sha256(BAD).hexdigest())]
    heard = Listener()
    fetch(pair, home=tmp_path, report=heard)
    assert heard.stages == [("Fetching 2 weight files", 2 * len(DATA), "bytes")]
    assert sum(heard.steps) == 2 * len(DATA)
    quiet = Listener()
    fetch(pair, home=tmp_path, report=quiet)
    assert quiet.stages == []


def test_progress_of_a_resumed_file_counts_the_rest(server: WeightsServer, tmp_path: Path):
    """With 100 bytes here already the stage is of the others, so that the speed is that of the network."""
    wanted, heard = asset(server.url("/a.bin")), Listener()
    place = cached_path(wanted, tmp_path)
    place.parent.mkdir()
    place.with_name(f"{place.name}.part").write_bytes(DATA[:100])
    fetch([wanted], home=tmp_path, report=heard)
    assert heard.stages == [("Fetching 1 weight file", len(DATA) - 100, "bytes")]
    assert sum(heard.steps) == len(DATA) - 100


def test_what_is_here_comes_before_the_network(server: WeightsServer, tmp_path: Path):
    """A local source is used even when the manifest names an address first."""
    (tmp_path / "a.bin").write_bytes(DATA)
    fetch([asset(server.url("/a.bin"), "a.bin", folder=tmp_path)], home=tmp_path)
    assert server.requests == []


def test_a_damaged_cached_file_is_fetched_again(server: WeightsServer, tmp_path: Path):
    """A file in the cache that changed is replaced by the right one, and it is told which, expected, got, done and why."""
    wanted = asset(server.url("/a.bin"))
    path = fetch([wanted], home=tmp_path)["enc"]
    path.write_bytes(BAD)
    heard = Listener()
    assert fetch([wanted], home=tmp_path, report=heard)["enc"].read_bytes() == DATA
    [told] = heard.warnings
    for fact in (str(path), wanted.sha256, hashlib.sha256(BAD).hexdigest(), "deleted and is fetched again", "may be the reason"):
        assert fact in told
    assert len(server.requests) == 2


def test_a_damaged_cached_file_is_never_given_out(server: WeightsServer, tmp_path: Path):
    """When no source delivers, the damaged file is gone and the error tells both."""
    wanted = asset(server.url("/a.bin"))
    path = fetch([wanted], home=tmp_path)["enc"]
    path.write_bytes(BAD)
    server.behave("/a.bin", "missing")
    with pytest.raises(WeightsError, match=r"has sha256 .* was deleted; .* 404"):
        fetch([wanted], home=tmp_path)
    assert not path.exists()


def test_sources_are_tried_in_order(server: WeightsServer, tmp_path: Path):
    """The next source is asked when one fails, and none after one that delivers."""
    server.files.update({"/b.bin": DATA, "/c.bin": DATA})
    server.behave("/a.bin", "wrong")
    fetch([asset(*map(server.url, ("/none", "/a.bin", "/b.bin", "/c.bin")))], home=tmp_path)
    assert [path for path, _ in server.requests] == ["/none", "/a.bin", "/b.bin"]


def test_every_failure_is_listed(server: WeightsServer, tmp_path: Path):
    """When all sources fail one error tells what happened at each, local ones included."""
    server.behave("/a.bin", "wrong")
    with pytest.raises(WeightsError) as caught:
        fetch([asset("lost.bin", server.url("/none"), server.url("/a.bin"), folder=tmp_path)], home=tmp_path)
    for told in (
        f"{tmp_path / 'lost.bin'} is not there",
        f"{server.url('/none')} answered 404",
        f"{server.url('/a.bin')} is not the file",
    ):
        assert told in caught.value.message


def test_offline_names_files_and_places(server: WeightsServer, tmp_path: Path, no_sockets: None):
    """Without network the error lists every missing file, with bytes, sha256, address and place, and nothing else."""
    missing = [asset(server.url("/a.bin")), asset(server.url("/b.bin"), name="dec", file="x/b.bin", sha256="b" * 64)]
    (tmp_path / "here.bin").write_bytes(DATA)
    here = asset("here.bin", folder=tmp_path, name="here")
    with pytest.raises(OfflineError) as caught:
        fetch([*missing, here], home=tmp_path, offline=True)
    for one in missing:
        facts = f"{one.file} ({len(DATA)} bytes, sha256 {one.sha256})"
        told = f"{facts} from {one.sources[0]} belongs at {cached_path(one, tmp_path)}"
        assert told in caught.value.message
    assert "here.bin" not in caught.value.message


def test_a_file_brought_by_hand_is_found(tmp_path: Path, no_sockets: None):
    """A file put where the offline error says is all that is needed."""
    wanted = asset("https://example.org/a.bin")
    place = cached_path(wanted, tmp_path)
    place.parent.mkdir()
    assert locate(wanted, home=tmp_path) is None
    place.write_bytes(DATA)
    assert fetch([wanted], home=tmp_path, offline=True) == {"enc": place}
    assert locate(wanted, home=tmp_path) == place


def test_offline_keeps_a_damaged_file_and_tells(tmp_path: Path, no_sockets: None):
    """Without network a damaged cached file is not deleted, as it cannot be replaced, and is reported."""
    wanted = asset("https://example.org/a.bin")
    place = cached_path(wanted, tmp_path)
    place.parent.mkdir()
    place.write_bytes(BAD)
    with pytest.raises(OfflineError, match=hashlib.sha256(BAD).hexdigest()):
        fetch([wanted], home=tmp_path, offline=True)
    assert place.read_bytes() == BAD


def test_nothing_is_downloaded_in_vain(server: WeightsServer, tmp_path: Path):
    """When one asset has no source at all the others are not downloaded first."""
    hopeless = asset(name="dec", file="x/b.bin", sha256="b" * 64)
    with pytest.raises(WeightsError, match=r"'dec'.*no source"):
        fetch([asset(server.url("/a.bin")), hopeless], home=tmp_path)
    assert server.requests == []


def test_a_check_is_remembered_until_the_file_changes(tmp_path: Path):
    """A file is hashed once per process; a change that keeps its size and its time is still noticed."""
    (tmp_path / "a.bin").write_bytes(DATA)
    wanted = asset("a.bin", folder=tmp_path)
    fetch([wanted])
    hashed = cache._sha256.cache_info().misses
    fetch([wanted, wanted])
    assert cache._sha256.cache_info().misses == hashed
    stat = (tmp_path / "a.bin").stat()
    (tmp_path / "a.bin").write_bytes(BAD)
    os.utime(tmp_path / "a.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert locate(wanted) is None


def several(folder: Path, count: int = 3) -> list[Asset]:
    """Assets a0, a1 … of one kilobyte each, all of them in the folder."""
    contents = {f"a{number}": bytes([number]) * 1000 for number in range(count)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [asset(name, folder=folder, name=name, file=f"x/{name}", bytes=1000, sha256=hashlib.sha256(content).hexdigest()) for name, content in contents.items()]


def test_large_assets_are_hashed_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """More than LARGE bytes: the first is not hashed before the second is begun, which would never be if they came one after the other; each once, in their order."""
    hashed, both, digest = [], threading.Barrier(2), cache.digest_of

    def meeting(path: Path):
        hashed.append(path.name)
        if path.name in ("a0", "a1"):
            both.wait(60)
        return digest(path)

    wanted = several(tmp_path)
    monkeypatch.setattr(cache, "LARGE", 2999)
    monkeypatch.setattr(cache, "digest_of", meeting)
    assert list(fetch(wanted).items()) == [(f"a{number}", tmp_path / f"a{number}") for number in range(3)]
    assert sorted(hashed) == ["a0", "a1", "a2"]
    assert fetch(wanted).keys() == {"a0", "a1", "a2"}
    assert len(hashed) == 3


def test_small_assets_are_hashed_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Up to LARGE bytes no thread is started."""
    monkeypatch.setattr(cache, "together", lambda *_, **__: pytest.fail("threads"))
    monkeypatch.setattr(cache, "LARGE", 3000)
    assert list(fetch(several(tmp_path))) == ["a0", "a1", "a2"]


@pytest.mark.parametrize("offline", [False, True])
def test_what_is_wrong_is_told_alike_however_it_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool):
    """The second is damaged, the third missing: the same sentence in threads and without."""
    wanted = several(tmp_path)
    (tmp_path / "a1").write_bytes(bytes(1000))
    (tmp_path / "a2").unlink()
    told = []
    for large in (2999, 3000):
        monkeypatch.setattr(cache, "LARGE", large)
        with pytest.raises(WeightsError) as caught:
            fetch(wanted, home=tmp_path / "home", offline=offline)
        told.append((type(caught.value), caught.value.message, caught.value.tip))
    assert told[0] == told[1]
    assert "a1 has sha256" in told[0][1]


def test_a_read_only_cache_serves(server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A cache that cannot be written is enough as long as the file is there."""
    wanted = asset(server.url("/a.bin"))
    path = fetch([wanted], home=tmp_path)["enc"]
    shutil.rmtree(tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    path.write_bytes(DATA)
    monkeypatch.setattr(cache, "alone", lambda *_, **__: pytest.fail("the cache was locked for writing"))
    assert fetch([wanted], home=tmp_path) == {"enc": path}
    assert os.listdir(tmp_path / "weights") == [path.name]


def test_a_cache_that_cannot_be_made_is_told(server: WeightsServer, tmp_path: Path):
    """A cache folder that cannot be made is a WeightsError that names CLSEG_HOME as the way out."""
    (tmp_path / "home").write_text("a file, not a folder")
    with pytest.raises(WeightsError, match="cannot be written") as caught:
        fetch([asset(server.url("/a.bin"))], home=tmp_path / "home")
    assert "CLSEG_HOME" in caught.value.tip


def test_two_processes_download_once(server: WeightsServer, tmp_path: Path):
    """Two processes that want one asset at the same moment cause one request, and both get the file."""
    server.behave("/a.bin", "slow")
    (tmp_path / "list.json").write_text(
        json.dumps({"format": 1, "models": {}, "assets": {"enc": asset(server.url("/a.bin")).to_dict()}})
    )
    code = (
        "import sys; from pathlib import Path\n"
        "from clseg.manifest import Manifest; from clseg.weights.cache import fetch\n"
        "import filelock, requests; print('ready', flush=True); sys.stdin.readline()\n"
        "path = fetch(Manifest.read(sys.argv[1]).assets, home=Path(sys.argv[2]))['enc']\n"
        "print(path.read_bytes()[:7].decode())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "list.json"), str(tmp_path / "home")]
    pair = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [child.stdout.readline() for child in pair] == ["ready\n"] * 2
    for child in pair:
        child.stdin.write("go\n")
        child.stdin.flush()
    assert [child.communicate(timeout=30)[0] for child in pair] == ["weights\n"] * 2
    assert len(server.requests) == 1


def test_who_waits_for_another_process_is_told(server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """While somebody holds the lock there is a sentence; once it is free the file comes; who never lets go is an error."""
    monkeypatch.setattr(cache, "PATIENCE_S", 0.05)
    wanted, heard = asset(server.url("/a.bin")), Listener()
    place = cached_path(wanted, tmp_path)
    place.parent.mkdir()
    holder = FileLock(f"{place}.lock", thread_local=False)
    holder.acquire()
    threading.Timer(0.3, holder.release).start()
    assert fetch([wanted], home=tmp_path, report=heard)["enc"].read_bytes() == DATA
    assert heard.warnings == [f"Another process is busy with {place.name}; waiting for it."]
    monkeypatch.setattr(cache, "LOCK_S", 0.05)
    place.unlink()
    with holder, pytest.raises(WeightsError, match=r"Another process has held .*\.lock"):
        fetch([wanted], home=tmp_path)


def test_a_mirror_takes_the_place_of_addresses(server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With CLSEG_WEIGHTS_URL only the mirror is asked, for the asset's file name below it."""
    server.files["/mirror/x/a.bin"] = DATA
    monkeypatch.setenv("CLSEG_WEIGHTS_URL", server.url("/mirror/"))
    fetch([asset(server.url("/a.bin"))])
    assert [path for path, _ in server.requests] == ["/mirror/x/a.bin"]
    assert cached_path(asset(), tmp_path / "env-home").is_file()


def test_a_mounted_folder_is_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_sockets: None):
    """A file:// mirror is used in place, without network."""
    (tmp_path / "share/x").mkdir(parents=True)
    (tmp_path / "share/x/a.bin").write_bytes(DATA)
    monkeypatch.setenv("CLSEG_WEIGHTS_URL", (tmp_path / "share").as_uri())
    assert fetch([asset("https://example.org/a.bin")], offline=True) == {"enc": tmp_path / "share/x/a.bin"}


@pytest.mark.parametrize("mirror", ["http://example.org/w", "ftp://example.org/w", "/srv/weights", "package:data"])
def test_a_bad_mirror_is_refused(mirror: str, monkeypatch: pytest.MonkeyPatch, no_sockets: None):
    """A mirror must be https, file, or http on this machine."""
    monkeypatch.setenv("CLSEG_WEIGHTS_URL", mirror)
    with pytest.raises(UsageError, match="CLSEG_WEIGHTS_URL is"):
        fetch([asset("https://example.org/a.bin")])


def test_offline_by_environment(monkeypatch: pytest.MonkeyPatch, no_sockets: None):
    """CLSEG_OFFLINE=1 forbids downloading like offline=True."""
    monkeypatch.setenv("CLSEG_OFFLINE", "1")
    with pytest.raises(OfflineError):
        fetch([asset("https://example.org/a.bin")])


def test_the_users_own_list_is_merged(tmp_path: Path):
    """Models listed in CLSEG_HOME are known beside the builtin ones."""
    own = {"format": 1, "models": {"mine": {"description": "", "licence": "none", "assets": ["my-enc"]}}, "assets": {}}
    own["assets"]["my-enc"] = asset("a.bin", file="mine/a.bin").to_dict()
    (tmp_path / cache.FILE_NAME).write_text(json.dumps(own))
    known = cache.manifest(home=tmp_path)
    assert known.model("mine").assets == ("my-enc",)
    assert known.model("starter") == cache.manifest(home=tmp_path / "empty").model("starter")


def test_environment_is_read_from_three_names(tmp_path: Path):
    """Home, offline and mirror come from the variables given, with blanks and nothing meaning not set."""
    found = environment(
        {"CLSEG_HOME": str(tmp_path), "CLSEG_OFFLINE": " Yes ", "CLSEG_WEIGHTS_URL": "https://example.org"}
    )
    assert (found.home, found.offline, found.mirror) == (tmp_path, True, "https://example.org")
    bare = environment({"CLSEG_HOME": " ", "CLSEG_OFFLINE": "", "CLSEG_WEIGHTS_URL": ""})
    assert (bare.home.name, bare.offline, bare.mirror) == ("clseg", False, None)


def test_an_unclear_offline_is_refused():
    """CLSEG_OFFLINE with a word that is neither yes nor no is a usage error, not a silent no."""
    with pytest.raises(UsageError, match="CLSEG_OFFLINE is 'maybe'"):
        environment({"CLSEG_OFFLINE": "maybe"})
