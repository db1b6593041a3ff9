"""Facts about bundles: what is packed here is the same there, and nothing else gets in."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clseg.errors import ClsegError, InputError, OutputError, UsageError, WeightsError
from clseg.manifest import FILE_NAME, Manifest
from clseg.weights import bundle as module
from clseg.weights import own
from clseg.weights.bundle import add, pack
from clseg.weights.cache import cached_path, fetch, manifest
from tests.conftest import TINY_LABELS, write_tiny_model

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tiny(tmp_path: Path) -> Manifest:
    """The list of a model "tiny" on another machine."""
    return Manifest.read(write_tiny_model(tmp_path / "there", TINY_LABELS) / FILE_NAME)


@pytest.fixture
def lungs(tiny: Manifest, tmp_path: Path) -> Path:
    """A bundle of what the lungs need."""
    return packed(tiny, tmp_path / "lungs.zip", "lung_left")


def packed(listing: Manifest, to: Path, *structures: str) -> Path:
    assets = listing.assets_for("tiny", structures)
    pack(listing, "tiny", assets, fetch(assets), to)
    return to


def builtin_is(listing: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Manifest, "builtin", classmethod(lambda cls: listing))


def files_of(home: Path) -> set[str]:
    """Everything below, locks aside."""
    return {str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir() and not path.name.endswith(".lock")}


def rewritten(bundle: Path, change: Callable[[dict[str, bytes]], object], **options: object) -> Path:
    """The bundle with its members changed, written plainly again."""
    with zipfile.ZipFile(bundle) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(bundle, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return bundle


def test_a_bundle_holds_what_the_roi_needs(lungs: Path):
    """The lungs: their decoder and the encoder, as they are, and a list of these two with sources beside it."""
    with zipfile.ZipFile(lungs) as archive:
        assert set(archive.namelist()) == {FILE_NAME, "assets/tiny/tiny-encoder.safetensors", "assets/tiny/tiny-lungs.safetensors"}
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        listed = json.loads(archive.read(FILE_NAME))
    assert listed["models"]["tiny"]["assets"] == ["tiny-encoder", "tiny-lungs"]
    assert listed["assets"]["tiny-lungs"]["sources"] == ["assets/tiny/tiny-lungs.safetensors"]


def test_the_same_weights_give_the_same_bundle(tiny: Manifest, lungs: Path, tmp_path: Path):
    """No times or places are in it, so two bundles can be compared by hash."""
    assert packed(tiny, tmp_path / "again.zip", "lung_right").read_bytes() == lungs.read_bytes()


def test_an_unpacked_bundle_is_a_manifest_with_its_files(lungs: Path, tmp_path: Path):
    """So it can lie on a share, too."""
    with zipfile.ZipFile(lungs) as archive:
        archive.extractall(tmp_path / "share")
    listing = Manifest.read(tmp_path / "share" / FILE_NAME)
    assert set(fetch(listing.assets, offline=True)) == {"tiny-encoder", "tiny-lungs"}


def test_a_strange_model_becomes_ones_own(lungs: Path, own_home: Path):
    """A model that the package does not know can be asked for after `add`, offline, with the same bytes."""
    brought = add(lungs)
    assert (brought.cached, brought.models) == ((), ("tiny",))
    listing = manifest()
    assert set(listing.labels_of("tiny")) == {"lung_left", "lung_right"}
    found = fetch(listing.assets_for("tiny", ["lung_left"]), offline=True)
    assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in found.values()} == {asset.sha256 for asset in brought.own}
    assert {name.split("/")[0] for name in files_of(own_home)} == {FILE_NAME, "models"}


def test_bundles_of_one_model_add_up(tiny: Manifest, lungs: Path, tmp_path: Path, own_home: Path):
    """The lungs today, the abdomen tomorrow: the model has both, and the encoder is there once."""
    add(lungs)
    add(packed(tiny, tmp_path / "abdomen.zip", "liver"))
    before = files_of(own_home)
    add(lungs)
    assert files_of(own_home) == before
    assert set(manifest().labels_of("tiny")) == {"lung_left", "lung_right", "liver", "spleen"}
    assert len(list((own_home / "models").iterdir())) == 3


def test_a_builtin_model_goes_to_the_cache(tiny: Manifest, lungs: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch):
    """What the package lists and would download is in the cache after `add`, and there is no list of one's own."""
    remote = tuple(replace(asset, sources=(f"https://example.org/{asset.name}",)) for asset in tiny.assets)
    builtin_is(Manifest(tiny.models, remote), monkeypatch)
    brought = add(lungs)
    assert brought.own == ()
    assert files_of(own_home) == {str(cached_path(asset, own_home).relative_to(own_home)) for asset in brought.cached}
    assert set(fetch(manifest().assets_for("tiny", ["lung_left"]), offline=True)) == {"tiny-encoder", "tiny-lungs"}
    assert add(lungs).cached == ()


def test_what_was_learned_on_a_builtin_model_travels(tiny: Manifest, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch):
    """A decoder added to the package's model is one's own there, too, with the encoder it stands on; the rest is not doubled.

    An update of the package that brings another encoder under the same name then does no harm.
    """
    builtin_is(tiny.closed(["tiny"]), monkeypatch)
    extra = Manifest.read(write_tiny_model(tmp_path / "more", {"mine": ("heart",)}, seed=0) / FILE_NAME)
    mine = {replace(extra.asset("tiny-mine"), requires=("tiny-encoder",)): tmp_path / "more/tiny/tiny-mine.safetensors"}
    own.add(replace(tiny.model("tiny"), assets=()), mine, {tiny.asset("tiny-encoder"): tmp_path / "there/tiny/tiny-encoder.safetensors"}, home=tmp_path / "learned")
    there = manifest(home=tmp_path / "learned")
    whole = packed(there, tmp_path / "whole.zip", "heart", "lung_left")
    brought = add(whole)
    assert [asset.name for asset in brought.own if asset.kind == "decoder"] == ["tiny-mine"]
    assert brought.cached == ()  # the lungs are in the package
    assert manifest().labels_of("tiny") == there.labels_of("tiny")
    assert {asset.sha256 for asset in manifest().assets_for("tiny", ["heart"])} == {asset.sha256 for asset in there.assets_for("tiny", ["heart"])}
    builtin_is(Manifest.read(write_tiny_model(tmp_path / "update", TINY_LABELS, seed=1) / FILE_NAME), monkeypatch)
    assert set(fetch(manifest().assets_for("tiny", ["heart"]), offline=True)) >= {"tiny-mine"}


def test_a_model_on_the_packages_encoder_outlives_an_update(tiny: Manifest, lungs: Path, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A model with a name of its own keeps a copy of the encoder it stands on, under a name with digits of its sha256."""
    builtin_is(Manifest((), (tiny.asset("tiny-encoder"),)), monkeypatch)
    add(lungs)
    encoder = tiny.asset("tiny-encoder")
    assert manifest().model("tiny").assets == (f"tiny-encoder.{encoder.sha256[:8]}", "tiny-lungs")
    builtin_is(Manifest((), (replace(encoder, sha256="0" * 64, file="new.bin"),)), monkeypatch)
    found = fetch(manifest().assets_for("tiny", ["lung_left"]), offline=True)
    assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in found.values()} == {encoder.sha256, tiny.asset("tiny-lungs").sha256}


def test_what_a_killed_process_left_is_swept(lungs: Path, own_home: Path):
    """A temporary folder of yesterday goes with the next `add`, one of today may be in use and stays."""
    for name, age in (("old", 2 * module._ABANDONED_S), ("new", 0)):
        place = own_home / f".adding-{name}"
        place.mkdir()
        os.utime(place, (time.time() - age,) * 2)
    add(lungs)
    assert [path.name for path in own_home.glob(".adding-*")] == [".adding-new"]


def test_a_bundle_against_the_package_is_refused(lungs: Path, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch):
    """An asset's name with other contents than the package's would make the list unusable: nothing is added."""
    builtin_is(Manifest.read(write_tiny_model(tmp_path / "other", TINY_LABELS, seed=1) / FILE_NAME), monkeypatch)
    with pytest.raises(WeightsError, match="listed with two contents"):
        add(lungs)
    assert files_of(own_home) == set()


def _other_bytes(members: dict[str, bytes]) -> None:
    name = "assets/tiny/tiny-lungs.safetensors"
    members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])


def _relist(**changes: object) -> Callable[[dict[str, bytes]], None]:
    """The listed decoder of the lungs with other facts."""

    def change(members: dict[str, bytes]) -> None:
        listed = json.loads(members[FILE_NAME])
        listed["assets"]["tiny-lungs"].update(changes)
        members[FILE_NAME] = json.dumps(listed).encode()

    return change


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (_other_bytes, WeightsError, r"damaged: expected sha256 \w{64}, got \w{64}; nothing was added"),
        (lambda m: m.update({"assets/tiny/tiny-lungs.safetensors": b"short"}), WeightsError, "has 5 bytes, its manifest says"),
        (lambda m: m.pop("assets/tiny/tiny-lungs.safetensors"), InputError, "lacks 'assets/tiny/tiny-lungs.safetensors'"),
        (lambda m: m.pop(FILE_NAME), InputError, "has no weights_manifest.json"),
        (lambda m: m.update({"readme.txt": b"hello"}), InputError, "'readme.txt', which its manifest does not name"),
        (lambda m: m.update({"../../evil": b"x"}), InputError, r"'\.\./\.\./evil', which its manifest does not name"),
        (lambda m: m.update({"/etc/evil": b"x"}), InputError, "which its manifest does not name"),
        (lambda m: m.update({"assets/": b""}), InputError, "not a plain file"),
        (_relist(file="../../evil.safetensors"), WeightsError, "stays in its folder"),
        (_relist(file="/etc/evil.safetensors"), WeightsError, "stays in its folder"),
        (_relist(sha256="0" * 64), WeightsError, "is damaged"),
        (_relist(colour="red"), WeightsError, "unknown key"),
        (lambda m: m.update({FILE_NAME: b"{"}), WeightsError, "not JSON text"),
        (lambda m: m.update({FILE_NAME: b" " * (module.MANIFEST_BYTES + 1)}), InputError, "expected at most"),
    ],
)
def test_what_is_not_as_it_should_be_is_refused(lungs: Path, own_home: Path, change: Callable, error: type[ClsegError], sentence: str):
    """Damage, missing and unknown members, ways out of the folder: a sentence, and nothing was placed anywhere."""
    rewritten(lungs, change)
    around = files_of(lungs.parent)
    with pytest.raises(error, match=sentence):
        add(lungs)
    assert files_of(own_home) == set()
    assert files_of(lungs.parent) == around


def test_a_compressed_member_is_refused(lungs: Path, own_home: Path):
    """So no member can unfold to more than the file is long."""
    rewritten(lungs, lambda _: None, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="compressed or encrypted"):
        add(lungs)
    assert files_of(own_home) == set()


def test_a_link_is_refused(lungs: Path, own_home: Path):
    """A member that says it is a symbolic link is not followed, even under a name that is listed."""
    with zipfile.ZipFile(lungs) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(lungs, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16 if "lungs" in name else 0
            archive.writestr(info, data)
    with pytest.raises(InputError, match=r"'assets/tiny/tiny-lungs.safetensors' in .* is not a plain file"):
        add(lungs)
    assert files_of(own_home) == set()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(lungs: Path, own_home: Path):
    """Of two members of one name one could be verified and the other used."""
    with zipfile.ZipFile(lungs, "a") as archive:
        archive.writestr("assets/tiny/tiny-lungs.safetensors", b"other")
    with pytest.raises(InputError, match="two members of one name"):
        add(lungs)
    assert files_of(own_home) == set()


def test_overlapping_members_are_refused(tmp_path: Path, own_home: Path):
    """A thousand entries that all mean the same megabyte claim more than the file has: a bomb, refused by its sum."""
    data = bytes(1 << 20)
    names = [f"assets/{number}.bin" for number in range(1000)]
    facts = {"kind": "encoder", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "licence": "MIT"}
    listed = {f"a{number}": {**facts, "file": name.removeprefix("assets/")} for number, name in enumerate(names)}
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr(FILE_NAME, json.dumps({"format": 1, "models": {}, "assets": listed}))
        archive.writestr(names[0], data)
        for name in names[1:]:
            twin = zipfile.ZipInfo(name)
            twin.CRC, twin.file_size, twin.compress_size = archive.filelist[1].CRC, len(data), len(data)
            twin.header_offset = archive.filelist[1].header_offset
            archive.filelist.append(twin)
        archive._didModify = True
    assert bomb.stat().st_size < 3 << 20
    with pytest.raises(InputError, match="overlap: they claim more bytes than the file has"):
        add(bomb)
    assert files_of(own_home) == set()


def test_an_encrypted_member_is_refused(lungs: Path, own_home: Path):
    """The flag of encryption ends it before a password is asked for."""
    data = bytearray(lungs.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 8 : at + 10] = struct.pack("<H", 1)
    lungs.write_bytes(data)
    with pytest.raises(InputError, match="compressed or encrypted"):
        add(lungs)
    assert files_of(own_home) == set()


@pytest.mark.parametrize("cut", [0, 10, 1000, -5])
def test_half_a_bundle_is_no_bundle(lungs: Path, own_home: Path, cut: int):
    """A copy that broke off is told, whatever is left of it."""
    lungs.write_bytes(lungs.read_bytes()[:cut])
    with pytest.raises(InputError, match="not a usable zip file"):
        add(lungs)
    assert files_of(own_home) == set()


def test_a_flipped_bit_is_always_noticed(lungs: Path, own_home: Path, tmp_path: Path):
    """Anywhere in the file: an error or, where the bit means nothing, the same weights; never other ones."""
    whole = lungs.read_bytes()
    good = {asset.sha256 for asset in add(lungs).own}
    for number, at in enumerate(range(0, len(whole), len(whole) // 60)):
        lungs.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        home = tmp_path / f"home{number}"
        try:
            add(lungs, home=home, mine=home)
        except ClsegError:
            assert files_of(home) == set()
        else:
            assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in (home / "models").iterdir()} <= good


def test_no_bundle_is_a_wrong_call(tmp_path: Path):
    """A name that is not there ends with exit code 2."""
    with pytest.raises(UsageError, match="no bundle"):
        add(tmp_path / "nowhere.zip")


def test_a_disk_that_is_too_small_is_told(lungs: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch):
    """Room for the files and their copies is looked for first."""
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("usage", (), {"free": 100}))
    with pytest.raises(OutputError, match="100 bytes free"):
        add(lungs)
    assert files_of(own_home) == set()


def test_two_processes_at_once(lungs: Path, own_home: Path):
    """Both end well, and the model is there, whole."""
    words = [sys.executable, "-c", "import sys; from pathlib import Path; from clseg.weights.bundle import add; add(Path(sys.argv[1]))", str(lungs)]
    for one in [subprocess.Popen(words, cwd=ROOT) for _ in range(2)]:
        assert one.wait(60) == 0
    listing = manifest()
    assert set(fetch(listing.listed("tiny"), offline=True)) == {"tiny-encoder", "tiny-lungs"}
    assert len(files_of(own_home)) == 3


def test_what_is_only_required_does_not_speak(tmp_path: Path, own_home: Path):
    """A decoder that another one needs as its supporter, and that the model does not list, is brought and not listed."""
    there = write_tiny_model(tmp_path / "there", TINY_LABELS)
    listing = Manifest.read(there / FILE_NAME)
    old, liver = listing.asset("tiny-lungs"), listing.asset("tiny-abdomen")
    needy = replace(liver, requires=(*liver.requires, old.name))
    model = replace(listing.model("tiny"), assets=("tiny-encoder", liver.name))
    assets = tuple(needy if asset == liver else asset for asset in listing.assets)
    listing = Manifest((model,), assets)
    bundle = packed(listing, tmp_path / "abdomen.zip", "liver")
    add(bundle)
    assert set(manifest().labels_of("tiny")) == set(liver.labels)
    (brought,) = [asset for asset in manifest().assets if asset.sha256 == old.sha256]
    assert manifest().asset(liver.name).requires[-1] == brought.name
    assert fetch([brought])[brought.name].is_file()
