"""Facts about the weights that are on this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from clseg.manifest import Asset
from clseg.weights import cache
from clseg.weights.cache import cached_path
from clseg.weights.stock import holdings, remove, remove_all, verify

DATA = b"weights" * 100
BAD = b"w" * len(DATA)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the installed package."""
    folder = tmp_path / "package"
    folder.mkdir()
    monkeypatch.setattr(cache, "files", lambda _: folder)
    return folder


def asset(name: str, *sources: str, folder: Path | None = None) -> Asset:
    data = DATA + name.encode()
    return Asset(name, "encoder", f"x/{name}.bin", len(data), hashlib.sha256(data).hexdigest(), "MIT", sources, folder=folder)


def downloaded(name: str, home: Path) -> Asset:
    """An asset that lies in the cache."""
    one = asset(name, f"https://example.org/{name}.bin")
    place = cached_path(one, home)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(DATA + name.encode())
    return one


def test_every_place_has_its_word(package: Path, own_home: Path, tmp_path: Path):
    """In the package, among one's own, elsewhere, in the cache, and not here."""
    (package / "p.bin").write_bytes(DATA + b"p")
    (own_home / "o.bin").write_bytes(DATA + b"o")
    (tmp_path / "f.bin").write_bytes(DATA + b"f")
    mine = [asset("p", "package:p.bin"), asset("o", "o.bin", folder=own_home), asset("f", "f.bin", folder=tmp_path)]
    mine += [downloaded("c", tmp_path), asset("n", "https://example.org/n")]
    found = holdings(mine, home=tmp_path)
    assert [one.place for one in found] == ["package", "own", "folder", "cache", None]
    assert [one.path for one in found] == [package / "p.bin", own_home / "o.bin", tmp_path / "f.bin", cached_path(mine[3], tmp_path), None]


def test_a_file_of_another_size_is_not_here(tmp_path: Path):
    """Looking is quick: the size alone decides, `verify` hashes."""
    one = downloaded("a", tmp_path)
    cached_path(one, tmp_path).write_bytes(DATA)
    assert holdings([one], home=tmp_path)[0].path is None


def test_verifying_tells_good_from_bad(package: Path, tmp_path: Path):
    """A changed byte, a lost file of the package and a changed file that no list names are found; what is not here is no fault."""
    good, bad = downloaded("good", tmp_path), downloaded("bad", tmp_path)
    cached_path(bad, tmp_path).write_bytes(BAD + b"bad")
    unlisted, changed = downloaded("unlisted", tmp_path), downloaded("changed", tmp_path)
    cached_path(changed, tmp_path).write_bytes(BAD)
    lost, away = asset("lost", "package:lost.bin"), asset("away", "https://example.org/x")
    whole, damaged = verify([good, bad, lost, away], home=tmp_path)
    assert sorted(whole) == sorted(cached_path(one, tmp_path) for one in (good, unlisted))
    faults = {one.path: one.fault for one in damaged}
    assert set(faults) == {cached_path(bad, tmp_path), cached_path(changed, tmp_path), package / "lost.bin"}
    assert hashlib.sha256(BAD + b"bad").hexdigest() in faults[cached_path(bad, tmp_path)]
    assert f"begins with {changed.sha256[:16]}" in faults[cached_path(changed, tmp_path)]
    assert faults[package / "lost.bin"] == "is not there"


def test_removing_touches_the_cache_alone(own_home: Path, tmp_path: Path):
    """The downloaded file and its unfinished parts go; other downloads and one's own files stay."""
    one, other = downloaded("one", tmp_path), downloaded("other", tmp_path)
    place = cached_path(one, tmp_path)
    part = place.with_name(f"{place.name}.part")
    part.write_bytes(b"half")
    (own_home / "one.bin").write_bytes(DATA + b"one")
    both = asset("one", "one.bin", "https://example.org/one.bin", folder=own_home)
    assert remove([both], home=tmp_path) == [place, part]
    assert not place.exists()
    assert not part.exists()
    assert cached_path(other, tmp_path).is_file()
    assert (own_home / "one.bin").is_file()
    assert remove([both], home=tmp_path) == []


def test_removing_all_leaves_ones_own(tmp_path: Path):
    """Downloads, parts and kept manifests go; models and their list stay, although they have the same home."""
    place = cached_path(downloaded("one", tmp_path), tmp_path)
    orphan = place.with_name("0123456789abcdef-x.bin.77-0123abcd.part")
    orphan.write_bytes(b"half")
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests/x.json").write_text("{}")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mine.bin").write_bytes(DATA)
    (tmp_path / "weights_manifest.json").write_text("{}")
    assert set(remove_all(home=tmp_path)) == {place, orphan, tmp_path / "manifests/x.json"}
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert left == {"models/mine.bin", "weights_manifest.json"}
