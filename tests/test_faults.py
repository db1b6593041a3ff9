"""Facts about fetching weights while the network, the disk, a proxy or another process misbehaves: real servers, real faults."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clseg.errors import WeightsError
from clseg.manifest import Asset
from clseg.weights import cache
from clseg.weights import download as module
from clseg.weights.cache import cached_path, fetch
from clseg.weights.download import download
from clseg.weights.sources import Sources
from tests.proxy import proxy
from tests.weights_server import WeightsServer, serve

ROOT = Path(__file__).parents[1]
DATA = bytes(range(256)) * 400  # 102400 bytes
BAD = bytes(255 - byte for byte in DATA)
SHA = hashlib.sha256(DATA).hexdigest()
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(scope="module")
def one_server() -> Iterator[WeightsServer]:
    with serve() as server:
        yield server


@pytest.fixture
def server(one_server: WeightsServer, monkeypatch: pytest.MonkeyPatch) -> WeightsServer:
    """A server with DATA at /a.bin and no memory of earlier tests; pauses are not waited for, no proxy is set."""
    monkeypatch.setattr(module, "PAUSES_S", (0, 0, 0))
    monkeypatch.setattr(module, "CHUNK_BYTES", 1024)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    one_server.start_over({"/a.bin": DATA})
    return one_server


def get(url: str, to: Path, **options: object) -> None:
    download(url, to, expected_bytes=len(DATA), expected_sha256=SHA, **options)


def asset(*sources: str, name: str = "enc", data: bytes = DATA) -> Asset:
    return Asset(name, "encoder", f"x/{name}.bin", len(data), hashlib.sha256(data).hexdigest(), "MIT", sources)


# ---- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", range(0, 100, 10))
def test_a_reset_anywhere_is_overcome(server: WeightsServer, tmp_path: Path, share: int):
    """A connection reset after 0, 10, … 90 % of the file costs one more request, for what is left."""
    server.behave("/a.bin", f"reset-{share}")
    get(server.url("/a.bin"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA
    assert len(server.requests) == 2


def test_resets_at_every_tenth_are_overcome(server: WeightsServer, tmp_path: Path):
    """A connection that breaks after each tenth of the file brings it in ten: headway is no failure."""
    server.behave("/a.bin", "tenth", always=True)
    get(server.url("/a.bin"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA
    assert 10 <= len(server.requests) <= 20


def test_a_slow_drip_is_waited_for(server: WeightsServer, tmp_path: Path):
    """A slow server that goes on sending is not given up: one request, the whole file."""
    server.behave("/a.bin", "drip")
    get(server.url("/a.bin"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA
    assert len(server.requests) == 1


def test_a_crawl_is_given_up(server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server that sends a byte now and then to keep the line open counts as broken, after four attempts."""
    monkeypatch.setattr(module, "SLOW_S", 0.1)
    server.behave("/a.bin", "crawl", always=True)
    with pytest.raises(WeightsError, match=r"in 4 attempts: only \d+ bytes came"):
        get(server.url("/a.bin"), tmp_path / "a")


def test_a_stall_is_given_up(server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server that stops sending is asked again after the timeout, for the other half."""
    monkeypatch.setattr(module, "TIMEOUT_S", (1.0, 0.2))
    server.behave("/a.bin", "stall")
    get(server.url("/a.bin"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA
    assert [wanted for _, wanted in server.requests] == [None, f"bytes={len(DATA) // 2}-"]


def test_the_pauses_double():
    """Between attempts there are pauses, each twice the one before, the same every time."""
    assert [b / a for a, b in zip(module.PAUSES_S, module.PAUSES_S[1:], strict=False)] == [2.0] * (len(module.PAUSES_S) - 1)


def test_four_at_once(server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of six files that all stall four are under way at once; they are resumed, the others follow, and all arrive."""
    monkeypatch.setattr(module, "TIMEOUT_S", (1.0, 0.5))
    files = {f"/{name}.bin": name.encode() * 5000 for name in "abcdef"}
    server.start_over(files)
    for path in files:
        server.behave(path, "stall")
    wanted = [asset(server.url(path), name=path[1], data=data) for path, data in files.items()]
    found = fetch(wanted, home=tmp_path)
    assert [start for _, start in server.requests[:4]] == [None] * 4
    assert server.requests[4][1] is not None
    assert {name: path.read_bytes() for name, path in found.items()} == {path[1]: data for path, data in files.items()}


def test_one_failure_ends_all(server: WeightsServer, tmp_path: Path):
    """When one file cannot be had the others are not waited for; the next call goes on from what they had."""
    server.start_over({"/a.bin": DATA, "/b.bin": BAD})
    server.behave("/a.bin", "missing")
    server.behave("/b.bin", "drip")
    pair = [asset(server.url("/a.bin")), asset(server.url("/b.bin"), name="b", data=BAD)]
    with pytest.raises(WeightsError, match="answered 404"):
        fetch(pair, home=tmp_path)
    assert not cached_path(pair[0], tmp_path).exists()
    found = fetch(pair, home=tmp_path)
    assert [found[name].read_bytes() for name in ("enc", "b")] == [DATA, BAD]


def test_the_next_source_is_tried(server: WeightsServer, tmp_path: Path):
    """Of three sources the first is dead, the second has wrong bytes, and the third serves."""
    server.start_over({"/good.bin": DATA, "/bad.bin": BAD})
    assert fetch([asset(*map(server.url, ("/gone.bin", "/bad.bin", "/good.bin")))], home=tmp_path)["enc"].read_bytes() == DATA
    assert [path for path, _ in server.requests] == ["/gone.bin", "/bad.bin", "/good.bin"]


def test_http_elsewhere_needs_permission(server: WeightsServer, tmp_path: Path):
    """An http:// source beyond this machine is refused in a sentence that names --allow-http."""
    with pytest.raises(WeightsError, match=r"not encrypted.*--allow-http"):
        fetch([asset("http://weights.example/a.bin")], home=tmp_path)


# ---- a proxy ----------------------------------------------------------------------------------------------------------


def test_a_proxy_is_used_for_http(server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With HTTP_PROXY and permission the proxy is asked, also for the rest after a cut."""
    server.behave("/a.bin", "reset-50")
    with proxy(server.http.server_port) as between:
        monkeypatch.setenv("HTTP_PROXY", between.url)
        monkeypatch.setenv("http_proxy", between.url)
        found = fetch([asset("http://weights.example/a.bin")], home=tmp_path, sources=Sources(allow_http=True))
    assert found["enc"].read_bytes() == DATA
    assert set(between.asked) == {"GET http://weights.example/a.bin"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of weights.example that nobody trusts yet, with its key, in one PEM file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "weights.pem"
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=weights.example -addext subjectAltName=DNS:weights.example"
    subprocess.run([*words.split(), "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


def test_a_proxy_is_used_for_https(server: WeightsServer, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """https:// goes through the proxy's CONNECT; a certificate is trusted when REQUESTS_CA_BUNDLE has it, else told."""
    with serve(certificate) as safe, proxy(safe.http.server_port) as between:
        safe.start_over({"/a.bin": DATA})
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, between.url)
        with pytest.raises(WeightsError, match=r"certificate .* not trusted") as caught:
            get("https://weights.example/a.bin", tmp_path / "a")
        assert "REQUESTS_CA_BUNDLE" in caught.value.tip
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        get("https://weights.example/a.bin", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA
    assert set(between.asked) == {"CONNECT weights.example:443"}


def test_a_dead_proxy_is_told(server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A proxy that does not answer is an error that says so, with the variable to look at."""
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match="proxy gave no connection") as caught:
        get("https://weights.example/a.bin", tmp_path / "a")
    assert "HTTPS_PROXY" in caught.value.tip


# ---- the disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """`disk(kilobytes)`: a small disk of its own; a second call with `readonly` or another size changes it."""
    place = tmp_path / "disk"
    place.mkdir()

    def mounted(kilobytes: int, *, readonly: bool = False) -> Path:
        options = f"size={kilobytes}k{',ro' if readonly else ''}{',remount' if place.is_mount() else ''}"
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(words, capture_output=True, text=True) if shutil.which("mount") else None
        if done is None or done.returncode:
            pytest.skip("needs the right to mount a small tmpfs")
        return place

    yield mounted
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_seen_first(server: WeightsServer, disk: Callable[..., Path]):
    """Two files of which one alone would fit: refused before anything is asked, with the sum that is needed."""
    server.files["/b.bin"] = BAD
    pair = [asset(server.url("/a.bin")), asset(server.url("/b.bin"), name="b", data=BAD)]
    with pytest.raises(WeightsError, match=f"2 weight files to fetch need {2 * len(DATA)}"):
        fetch(pair, home=disk(160))
    assert server.requests == []
    assert fetch(pair, home=disk(400))["b"].read_bytes() == BAD


def test_a_disk_that_fills_meanwhile_leaves_nothing(server: WeightsServer, disk: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    """When others fill the disk during the transfer: an error, no file, no part file; with room the next run succeeds."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 0, 1 << 30))
    wanted = asset(server.url("/a.bin"))
    with pytest.raises(WeightsError, match="No space left") as caught:
        fetch([wanted], home=disk(64))
    assert "Make room" in caught.value.message + caught.value.tip
    assert [path.name for path in (disk(64) / "weights").iterdir() if path.suffix != ".lock"] == []
    assert fetch([wanted], home=disk(400))["enc"].read_bytes() == DATA


def test_a_read_only_home_serves_what_it_has(server: WeightsServer, disk: Callable[..., Path]):
    """On a read-only disk the cached file is used; one that must be fetched is told in a sentence with the way out."""
    wanted, other = asset(server.url("/a.bin")), asset(server.url("/b.bin"), name="b", data=BAD)
    fetch([wanted], home=disk(400))
    home = disk(400, readonly=True)
    assert fetch([wanted], home=home)["enc"].read_bytes() == DATA
    with pytest.raises(WeightsError, match=r"cannot be written, and .*-b\.bin must be fetched into it: Read-only file system") as caught:
        fetch([wanted, other], home=home)
    assert "CLSEG_HOME" in caught.value.tip
    assert len(server.requests) == 1


def test_nothing_is_put_into_the_installation(server: WeightsServer):
    """A home inside the installed packages is refused before anything is asked or made."""
    home = Path(cache.__file__).parents[1] / "data" / "home"
    with pytest.raises(WeightsError, match="inside the installed packages") as caught:
        fetch([asset(server.url("/a.bin"))], home=home)
    assert "CLSEG_HOME" in caught.value.tip
    assert server.requests == []
    assert not home.exists()


# ---- the process ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not known on Windows")
def test_killed_in_the_middle_then_fetched(server: WeightsServer, tmp_path: Path):
    """A process that is killed while it holds the lock leaves no wrong file, and the next one has the right one at once."""
    server.behave("/a.bin", "stall")
    code = (
        "import sys; from pathlib import Path; from clseg.manifest import Asset; from clseg.weights.cache import fetch\n"
        f"fetch([Asset('enc', 'encoder', 'x/enc.bin', {len(DATA)}, '{SHA}', 'MIT', (sys.argv[1],))], home=Path(sys.argv[2]))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, server.url("/a.bin"), str(tmp_path)], cwd=ROOT)
    assert server.half_sent.wait(30)
    child.send_signal(signal.SIGKILL)
    child.wait()
    server.release.set()
    wanted = asset(server.url("/a.bin"))
    assert not cached_path(wanted, tmp_path).exists()
    assert fetch([wanted], home=tmp_path)["enc"].read_bytes() == DATA


@pytest.mark.skipif(os.name == "nt", reason="SIGINT is another thing on Windows")
def test_interrupted_in_the_middle(server: WeightsServer, tmp_path: Path):
    """Ctrl-C during a stalled transfer ends the process soon, not after the timeout of the network."""
    server.behave("/a.bin", "stall")
    code = (
        "import sys; from pathlib import Path; from clseg.manifest import Asset; from clseg.weights.cache import fetch\n"
        "from clseg.weights import together; together.LEAVE_S = 0.5\n"
        f"fetch([Asset('enc', 'encoder', 'x/enc.bin', {len(DATA)}, '{SHA}', 'MIT', (sys.argv[1],))], home=Path(sys.argv[2]))"
    )
    words = [sys.executable, "-c", code, server.url("/a.bin"), str(tmp_path)]
    child = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert server.half_sent.wait(30)
    child.send_signal(signal.SIGINT)
    try:
        _, told = child.communicate(timeout=15)
    finally:
        child.kill()
    assert "KeyboardInterrupt" in told
    assert not cached_path(asset(), tmp_path).exists()


# ---- all of it, by chance ---------------------------------------------------------------------------------------------

SMALL = DATA[:3000]
FAULTS = ["busy", "broken", "cut", "norange", "norange-206", "nolength", "oversize", "oversize-nolength", "wrong", "gzip", "missing"]
FAULTS += [f"reset-{share}" for share in range(0, 100, 10)] + ["tenth", "good"]
LEFT_OVERS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda place: None,
    "a good beginning": lambda place: place.with_name(f"{place.name}.part").write_bytes(SMALL[:1000]),
    "a wrong beginning": lambda place: place.with_name(f"{place.name}.part").write_bytes(b"?" * 1000),
    "too much": lambda place: place.with_name(f"{place.name}.part").write_bytes(SMALL + b"?"),
    "all of it": lambda place: place.with_name(f"{place.name}.part").write_bytes(SMALL),
    "somebody's part": lambda place: place.with_name(f"{place.name}.77-0123abcd.part").write_bytes(SMALL[:500]),
    "damage": lambda place: place.write_bytes(SMALL[:-1] + b"?"),
    "a stump": lambda place: place.write_bytes(b""),
}


def schedule(server: WeightsServer, home: Path, chance: random.Random) -> str:
    """One random history: left-overs in the cache, two sources with up to six faults each; a run, and a clean run."""
    server.start_over({"/a.bin": SMALL, "/b.bin": SMALL})
    faults = {path: chance.choices(FAULTS, k=chance.randrange(7)) for path in server.files}
    for path, answers in faults.items():
        server.behave(path, *answers)
    if chance.random() < 0.2:
        server.redirects["/old"] = chance.choice(["/a.bin", "/nowhere", "ftp://127.0.0.1/a", "/old"])
    sources = chance.sample(["/a.bin", "/b.bin", "/old"], chance.randint(1, 2))
    wanted = asset(*map(server.url, sources), data=SMALL)
    place = cached_path(wanted, home)
    place.parent.mkdir(parents=True)
    left = chance.choice(list(LEFT_OVERS))
    LEFT_OVERS[left](place)
    story = f"{left}, {sources}, {faults}, {server.redirects}"
    ending = _ending(wanted, home)
    assert ending == "right" or not place.exists(), story
    server.start_over({path: SMALL for path in ("/a.bin", "/b.bin", "/old")})
    assert fetch([wanted], home=home)["enc"].read_bytes() == SMALL, story
    return ending


def _ending(wanted: Asset, home: Path) -> str:
    """`right` when the right file came; `told` after an error that names the asset."""
    try:
        found = fetch([wanted], home=home)
    except WeightsError as error:
        return "told" if f"'{wanted.name}'" in error.message else error.message
    return "right" if found[wanted.name].read_bytes() == SMALL else "wrong"


@pytest.mark.parametrize("rounds", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_faults_never_leave_a_wrong_file(server: WeightsServer, tmp_path: Path, rounds: int):
    """Whatever happens: the right bytes or a clear error, never a wrong file under a right name; a clean run then succeeds."""
    chance = random.Random(rounds)
    endings = [schedule(server, tmp_path / str(number), chance) for number in range(rounds)]
    assert set(endings) == {"right", "told"}  # both were seen, so that neither half is idle
