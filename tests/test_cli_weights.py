"""`clseg weights …` and the options that say where weights come from: what is fetched, what is said, how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clseg.cli.app import app
from clseg.cli.segment import without_secrets
from clseg.errors import WeightsError
from clseg.io.nifti import write_volume
from clseg.manifest import FILE_NAME, Manifest
from clseg.phantom import small_phantom
from clseg.volume import Volume
from clseg.weights import download as download_module
from clseg.weights.cache import cached_path, fetch, manifest
from tests.conftest import TINY_LABELS, write_tiny_model
from tests.weights_server import WeightsServer, serve

ROOT = Path(__file__).parents[1]
LIST = f"/w/{FILE_NAME}"


@pytest.fixture(scope="session")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small torso as a file."""
    volume, _ = small_phantom()
    path = tmp_path_factory.mktemp("scan") / "ct.nii.gz"
    write_volume(path, Volume(np.asfortranarray(volume.array[8:32, 4:24, 10:32]), volume.affine))
    return path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightsServer]:
    """A server that has the model "tiny" and its manifest below /w."""
    monkeypatch.setattr(download_module, "PAUSES_S", (0, 0, 0))
    there = write_tiny_model(tmp_path / "there", TINY_LABELS)
    with serve() as server:
        server.start_over({f"/w/{path.relative_to(there)}": path.read_bytes() for path in there.rglob("*") if path.is_file()})
        yield server


def call(*words: object):
    """`clseg WORDS` in this process; its exit_code, stdout and stderr."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="clseg")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def asked(server: WeightsServer) -> set[str]:
    """The last parts of the paths that were asked for, and forget them."""
    found = {path.rpartition("/")[2] for path, _ in server.requests}
    server.requests.clear()
    return found


def files(*parts: str) -> set[str]:
    return {f"tiny-{part}.safetensors" for part in parts}


# ---- the main job -----------------------------------------------------------------------------------------------------


def test_exactly_what_the_roi_needs_is_fetched(server: WeightsServer, ct: Path, tmp_path: Path):
    """`-r lungs`: the encoder and the decoder of the lungs, once; a second run no weights, the liver only its decoder."""
    words = ("-i", ct, "-m", "tiny", "--manifest", server.url(LIST))
    assert call(*words, "-o", tmp_path / "out", "-r", "lungs").exit_code == 0
    assert sorted(path for path, _ in server.requests) == sorted([LIST, "/w/tiny/tiny-encoder.safetensors", "/w/tiny/tiny-lungs.safetensors"])
    asked(server)
    again = call(*words, "-o", tmp_path / "again", "-r", "lungs")
    assert (again.exit_code, asked(server)) == (0, {FILE_NAME})
    assert call(*words, "-o", tmp_path / "liver", "-r", "liver").exit_code == 0
    assert asked(server) == {FILE_NAME, *files("abdomen")}
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert set(run["model"]["weights"]) == {"tiny-encoder", "tiny-lungs"}


def test_once_fetched_it_works_offline(server: WeightsServer, ct: Path, tmp_path: Path):
    """The same address with --offline: the kept manifest and the cached weights, and the server hears nothing."""
    words = ("-i", ct, "-m", "tiny", "-r", "lungs", "--manifest", server.url(LIST))
    assert call(*words, "-o", tmp_path / "a").exit_code == 0
    asked(server)
    assert call(*words, "-o", tmp_path / "b", "--offline").exit_code == 0
    assert asked(server) == set()


def test_supporters_come_along(server: WeightsServer, tmp_path: Path):
    """A decoder that requires another one brings it."""
    listing = Manifest.read(tmp_path / "there" / FILE_NAME)
    lungs = replace(listing.asset("tiny-lungs"), requires=("tiny-encoder", "tiny-trunk"))
    server.files[LIST] = json.dumps(listing.with_asset("tiny", lungs).to_dict()).encode()
    assert call("weights", "fetch", "-m", "tiny", "-r", "lung_left", "--manifest", server.url(LIST)).exit_code == 0
    assert asked(server) == {FILE_NAME, *files("encoder", "lungs", "trunk")}


def test_a_mirror_is_asked_instead(server: WeightsServer, ct: Path, tmp_path: Path):
    """A manifest file that names a dead address, and --mirror with the files below it."""
    listing = Manifest.read(tmp_path / "there" / FILE_NAME)
    dead = tuple(replace(asset, sources=("https://127.0.0.1:9/x",)) for asset in listing.assets)
    Manifest(listing.models, dead).write(tmp_path / "list.json")
    words = ("-i", ct, "-o", tmp_path / "out", "-m", "tiny", "-r", "lungs", "--manifest", tmp_path / "list.json", "--mirror", server.url("/w"))
    assert call(*words).exit_code == 0
    assert asked(server) == files("encoder", "lungs")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--manifest", "nowhere.json"], 2, "no manifest 'nowhere.json'"),
        (["--manifest", "http://example.org/list.json"], 1, "--allow-http"),
        (["--manifest", "https://127.0.0.1:9/list.json", "--offline"], 1, "no copy is on this machine"),
    ],
)
def test_wrong_sources_end_in_a_sentence(ct: Path, tmp_path: Path, words: list[str], code: int, sentence: str):
    """Before anything is read or made."""
    result = call("-i", ct, "-o", tmp_path / "out", *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert sentence in result.stderr
    assert not (tmp_path / "out").exists()


def test_secrets_of_addresses_are_not_written_down():
    """run.json repeats the command without user, password and query of an address."""
    assert without_secrets("https://me:secret@h.org/w?token=secret") == "https://h.org/w"
    assert without_secrets("--mirror=https://me:secret@h.org/w") == "--mirror=https://h.org/w"
    assert [without_secrets(word) for word in ("--mirror", "ct=1.nii.gz", "-r")] == ["--mirror", "ct=1.nii.gz", "-r"]


WALL = """
import sys
def probes():  # urllib3, when pydicom or another library brings it, tries at its import whether ::1 can be bound
    frame = sys._getframe(2)
    while frame and frame.f_code.co_name != "_has_ipv6":
        frame = frame.f_back
    return frame is not None
def wall(event, details):
    if event.startswith("socket."):
        if not probes():
            print("WALL", event, file=sys.stderr)
        raise RuntimeError(f"{event} although offline")
sys.addaudithook(wall)
from clseg.cli.app import main
main()
"""


def behind_a_wall(*words: object) -> subprocess.CompletedProcess[str]:
    """`clseg WORDS` in a process in which no socket can be made or used; an attempt of ours is noted on stderr."""
    return subprocess.run([sys.executable, "-c", WALL, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_offline_with_the_shipped_weights_opens_no_socket(ct: Path, tmp_path: Path):
    """The whole main job, statistics and picture included, in a process that cannot make sockets."""
    result = behind_a_wall("-i", ct, "-o", tmp_path / "out", "-r", "lungs", "--offline", "--stats", "--preview")
    assert (result.returncode, "WALL" in result.stderr) == (0, False), result.stderr
    assert (tmp_path / "out" / "run.json").is_file()


def test_offline_with_missing_weights_opens_no_socket(ct: Path, tmp_path: Path, own_home: Path):
    """Exit 1 and an errand for every file: from where, how large, which sha256, and where it belongs."""
    listing = Manifest.read(write_tiny_model(tmp_path / "there", TINY_LABELS) / FILE_NAME)
    remote = tuple(replace(asset, sources=(f"https://example.org/{asset.name}",)) for asset in listing.assets)
    Manifest(listing.models, remote).write(tmp_path / "list.json")
    result = behind_a_wall("-i", ct, "-o", tmp_path / "out", "-m", "tiny", "-r", "lungs", "--manifest", tmp_path / "list.json", "--offline")
    assert (result.returncode, "WALL" in result.stderr) == (1, False), result.stderr
    for asset in remote:
        facts = (f"https://example.org/{asset.name} ", asset.sha256, str(cached_path(asset, own_home)))
        assert all((fact in result.stderr) is (asset.name in ("tiny-encoder", "tiny-lungs")) for fact in facts)
    assert not (tmp_path / "out").exists()


def test_the_wall_stands():
    """The same process does notice who opens a socket."""
    result = behind_a_wall("weights", "fetch", "--manifest", "https://127.0.0.1:9/list.json")
    assert result.returncode == 1
    assert "WALL" in result.stderr


# ---- clseg weights ----------------------------------------------------------------------------------------------------


def test_list_says_what_is_here(server: WeightsServer):
    """Before and after fetching the lungs: two files more are in the cache, and JSON says where."""
    words = ("weights", "list", "--json", "--manifest", server.url(LIST))
    before = json.loads(call(*words).stdout)["models"]
    assert [(model["name"], {one["place"] for one in model["assets"]}) for model in before] == [("tiny", {None})]
    call("weights", "fetch", "-m", "tiny", "-r", "lungs", "--manifest", server.url(LIST))
    [after] = json.loads(call(*words).stdout)["models"]
    here = {one["name"]: Path(one["path"]) for one in after["assets"] if one["place"] == "cache"}
    assert set(here) == {"tiny-encoder", "tiny-lungs"}
    assert all(one["path"] is None for one in after["assets"] if one["name"] not in here)
    assert all(path.stat().st_size == next(one["bytes"] for one in after["assets"] if one["name"] == name) for name, path in here.items())


def test_list_as_a_table():
    """The shipped models, each file with its licence, and that it is in the package."""
    result = call("weights", "list", "-m", "starter")
    assert result.exit_code == 0
    assert result.stdout.count("CC BY 4.0") == result.stdout.count("package") == len(Manifest.builtin().model("starter").assets)


def test_fetch_without_a_roi_brings_the_model(server: WeightsServer):
    """All four files, and a sentence with their sum."""
    result = call("weights", "fetch", "-m", "tiny", "--manifest", server.url(LIST))
    assert (result.exit_code, result.stdout) == (0, "")
    assert "4 weight files are here" in result.stderr
    assert asked(server) == {FILE_NAME, *files("encoder", "trunk", "lungs", "abdomen")}


@pytest.mark.parametrize("words", [["-m", "nothing_like_it"], ["-r", "lngs"]])
def test_fetch_refuses_unknown_names(words: list[str]):
    """Models and structures that nobody knows: exit 2."""
    assert call("weights", "fetch", *words).exit_code == 2


def test_verify_finds_the_damaged_file(server: WeightsServer, own_home: Path):
    """Whole: exit 0. One byte changed: exit 1, with the file, what was expected and what was found."""
    call("weights", "fetch", "-m", "tiny", "-r", "lungs", "--manifest", server.url(LIST))
    words = ("weights", "verify", "--manifest", server.url(LIST))
    assert call(*words).stdout == "2 weight files are whole\n"
    path = next((own_home / "weights").glob("*-tiny-lungs.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    result = call(*words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "1 of 2 weight files are damaged or missing" in result.stderr
    assert str(path) in result.stderr.replace("\n", "")


def test_path_names_the_folders(own_home: Path):
    """Downloads, one's own, and one file; a file that is not here is exit 1 with the way to bring it."""
    assert call("weights", "path").stdout == f"{own_home / 'weights'}\n"
    assert call("weights", "path", "--own").stdout == f"{own_home}\n"
    assert Path(call("weights", "path", "starter-body").stdout.strip()).name == "body.safetensors"
    assert call("weights", "path", "nothing").exit_code == 2


def test_remove_deletes_downloads_alone(server: WeightsServer, own_home: Path):
    """By model, by name, all; the package's files stay and it says so; nothing named is a wrong call."""
    fetch = ("weights", "fetch", "-m", "tiny", "--manifest", server.url(LIST), "-q")
    there = lambda: {path.name[17:] for path in (own_home / "weights").iterdir() if path.suffix == ".safetensors"}  # noqa: E731
    call(*fetch)
    assert "1 files deleted" in call("weights", "remove", "tiny-lungs", "--manifest", server.url(LIST)).stderr
    assert there() == files("encoder", "trunk", "abdomen")
    assert "3 files deleted" in call("weights", "remove", "-m", "tiny", "--manifest", server.url(LIST)).stderr
    assert there() == set()
    call(*fetch)
    assert call("weights", "remove", "--all").exit_code == 0
    assert there() == set()
    assert not (own_home / "manifests").exists()
    result = call("weights", "remove", "starter-body")
    assert "starter-body is part of the package and stays" in result.stderr
    assert Path(call("weights", "path", "starter-body").stdout.strip()).is_file()
    for words in ([], ["--all", "starter-body"], ["--own"], ["--own", "--all"]):
        assert call("weights", "remove", *words).exit_code == 2


def test_ones_own_model_goes_only_when_told(tiny_model, own_home: Path):
    """`remove -m tiny` leaves it and says how; with --own it is gone from list and disk."""
    tiny_model()
    result = call("weights", "remove", "-m", "tiny")
    assert "0 files deleted" in result.stderr
    assert "is your own (--model … --own removes it)" in result.stderr
    assert (own_home / "tiny/tiny-lungs.safetensors").is_file()
    assert "4 files deleted" in call("weights", "remove", "-m", "tiny", "--own").stderr
    assert not (own_home / "tiny/tiny-lungs.safetensors").exists()
    assert call("rois", "-m", "tiny").exit_code == 2
    assert call("weights", "remove", "-m", "starter", "--own").exit_code == 2


def test_an_air_gap_is_crossed(server: WeightsServer, ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Packed where there is a network, added behind a wall without one, used there: the same masks."""
    words = ("-m", "tiny", "-r", "lungs")
    there = ("--manifest", server.url(LIST))
    assert call("weights", "pack", *words, "-o", tmp_path / "lungs.zip", *there).exit_code == 0
    assert call("-i", ct, "-o", tmp_path / "a", *words, *there).exit_code == 0
    monkeypatch.setenv("CLSEG_HOME", str(tmp_path / "gap"))
    added = behind_a_wall("weights", "add", tmp_path / "lungs.zip")
    assert (added.returncode, "--model tiny" in added.stderr) == (0, True)
    used = behind_a_wall("-i", ct, "-o", tmp_path / "b", *words, "--offline")
    assert (used.returncode, "WALL" in used.stderr) == (0, False), used.stderr
    masks = [{path.name: path.read_bytes() for path in (tmp_path / side).glob("*.nii.gz")} for side in "ab"]
    assert masks[0] == masks[1] != {}


def test_manifest_prints_what_is_known(tiny_model, tmp_path: Path):
    """The builtin models and one's own; what is printed is a manifest again, in any folder."""
    tiny_model()
    (tmp_path / "all.json").write_text(call("weights", "manifest").stdout)
    listing = Manifest.read(tmp_path / "all.json")
    assert {"starter", "tiny"} <= {model.name for model in listing.models}
    assert "is a valid manifest" in call("weights", "manifest", "--validate", tmp_path / "all.json").stdout
    assert call("weights", "path", "tiny-lungs").exit_code == 0
    assert call("weights", "verify", "-m", "tiny", "--manifest", tmp_path / "all.json").stdout == "4 weight files are whole\n"


def test_manifest_says_what_is_wrong(tmp_path: Path):
    """Exit 1 and the sentence that is broken; no file: exit 2; the schema is JSON."""
    (tmp_path / "bad.json").write_text('{"format": 1, "models": {}, "assets": {}, "colour": "red"}')
    result = call("weights", "manifest", "--validate", tmp_path / "bad.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "unknown key 'colour'" in result.stderr.replace("\n", " ")
    assert call("weights", "manifest", "--validate", tmp_path / "nowhere.json").exit_code == 2
    assert json.loads(call("weights", "manifest", "--schema").stdout)["required"] == ["format", "models", "assets"]


def test_publish_and_use_from_there(tiny_model, own_home: Path, ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One's own model published, served, and used on a machine that has nothing but its address."""
    tiny_model()
    with serve() as server:
        result = call("weights", "publish", tmp_path / "www", "--base-url", server.url("/pub"))
        assert result.exit_code == 0
        assert f"--model tiny --manifest {server.url('/pub')}/{FILE_NAME}" in result.stderr.replace("\n", "")
        server.start_over({f"/pub/{path.relative_to(tmp_path / 'www')}": path.read_bytes() for path in (tmp_path / "www").rglob("*") if path.is_file()})
        monkeypatch.setenv("CLSEG_HOME", str(tmp_path / "elsewhere"))
        used = call("-i", ct, "-o", tmp_path / "out", "-m", "tiny", "-r", "lungs", "--manifest", server.url(f"/pub/{FILE_NAME}"))
        assert used.exit_code == 0
        assert asked(server) == {FILE_NAME, *files("encoder", "lungs")}


def test_nothing_of_ones_own_to_publish(tmp_path: Path):
    """Without own models and without a name it is a wrong call."""
    assert call("weights", "publish", tmp_path / "www", "--base-url", "https://example.org").exit_code == 2


def test_ones_own_file_that_is_gone_is_damage(tiny_model, own_home: Path):
    """It cannot be fetched: verify names it and ends with 1; using the model says to import or add it again."""
    tiny_model()
    asset = next(one for one in manifest().listed("tiny") if one.kind == "decoder")
    place = own_home / "tiny" / f"{asset.name}.safetensors"
    place.unlink()
    result = call("weights", "verify", "--model", "tiny")
    assert result.exit_code == 1
    assert place.name in result.output
    with pytest.raises(WeightsError) as told:
        fetch([asset])
    assert "import or add its model again" in str(told.value.tip)


@pytest.fixture
def elsewhere(own_home: Path, tmp_path: Path) -> Path:
    """One's own list names the files of the model "tiny" as file:// in the folder that is returned."""
    share = tmp_path / "share"
    write_tiny_model(share, TINY_LABELS)
    listing = json.loads((share / FILE_NAME).read_text())
    for asset in listing["assets"].values():
        asset["sources"] = [(share / asset["file"]).as_uri()]
    (own_home / FILE_NAME).write_text(json.dumps(listing))
    return share / "tiny"


@pytest.mark.parametrize("fault", ["is not there", "has 5 bytes"])
def test_a_file_elsewhere_that_is_not_whole_is_not_said_to_be_fetched(elsewhere: Path, fault: str) -> None:
    """Nobody can download what only a file:// source holds: list, verify, fetch and path say so, and where a copy belongs."""
    file = elsewhere / "tiny-lungs.safetensors"
    file.unlink() if fault == "is not there" else file.write_bytes(b"12345")
    assert "missing" in call("weights", "list", "-m", "tiny").stdout
    assert "to fetch" not in call("weights", "list", "-m", "tiny").stdout
    verified = call("weights", "verify", "-m", "tiny")
    assert verified.exit_code == 1
    assert f"{file} {fault}" in verified.stderr
    assert "1 of 4 weight files are damaged or missing" in verified.stderr
    assert "Files in folders that a manifest names: put whole copies there" in verified.stderr
    assert "install clseg again" not in verified.stderr
    fetched = call("weights", "fetch", "-m", "tiny")
    assert fetched.exit_code == 1
    assert "No address is known for it, so it cannot be fetched" in fetched.stderr
    assert "of your own weights" not in fetched.stderr
    told = call("weights", "path", "tiny-lungs")
    assert (told.exit_code, "No address is known for it" in told.stderr, "weights fetch" in told.stderr) == (1, True, False)


def test_a_mirror_is_an_address(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CLSEG_WEIGHTS_URL every file can be fetched."""
    (elsewhere / "tiny-lungs.safetensors").unlink()
    monkeypatch.setenv("CLSEG_WEIGHTS_URL", "https://example.org/w")
    assert "to fetch" in call("weights", "list", "-m", "tiny").stdout
    assert call("weights", "verify", "-m", "tiny").exit_code == 0


def test_a_model_of_files_elsewhere_is_taken_from_the_list(elsewhere: Path, own_home: Path) -> None:
    """`remove --own` says that the entry is gone and that the files stay; it counts none of them as deleted."""
    result = call("weights", "remove", "-m", "tiny", "--own")
    assert result.exit_code == 0, result.stderr
    assert f"'tiny' is no longer listed in {own_home / FILE_NAME}" in result.stderr
    assert f"tiny-lungs lies in a folder of yours and stays: {elsewhere / 'tiny-lungs.safetensors'}" in result.stderr
    assert "0 files deleted" in result.stderr
    assert len(list(elsewhere.iterdir())) == 4
    assert "tiny" not in json.loads((own_home / FILE_NAME).read_text())["models"]


def test_what_does_not_come_back_is_told(elsewhere: Path, own_home: Path) -> None:
    """A file that was brought into the cache by hand, and has no address, is deleted with a warning."""
    file = elsewhere / "tiny-lungs.safetensors"
    place = cached_path(manifest().asset("tiny-lungs"), own_home)
    place.parent.mkdir(parents=True)
    file.rename(place)
    result = call("weights", "remove", "tiny-lungs")
    assert "No address is known for tiny-lungs: it does not come back by itself" in result.stderr
    assert "1 files deleted" in result.stderr
    assert not place.exists()


def test_words_that_do_not_go_together():
    """Names beside --model, and a folder where a bundle belongs: exit 2 with what would be right."""
    assert "do not go together" in call("weights", "remove", "-m", "a", "b").stderr
    told = call("weights", "add", Path(__file__).parent)
    assert (told.exit_code, "is a folder" in told.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["path", "starter-body", "--own"], "--own is a folder"),
        (["manifest", "--schema", "--validate", "nowhere.json"], "--schema prints, --validate checks."),
    ],
)
def test_options_that_exclude_each_other_are_refused(words: list[str], said: str):
    """Neither is silently left out: exit 2."""
    result = call("weights", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
