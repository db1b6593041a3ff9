"""Facts about foreign folders: zips are unpacked beside nothing, and JSON files and names are what they should be."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from clseg.errors import UsageError, WeightsError
from clseg.weights.importers import folder as folders
from clseg.weights.importers.folder import opened, read_json, structure_name


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def is_json(name: str) -> bool:
    return name.endswith(".json")


def test_a_folder_is_used_where_it_lies(tmp_path: Path) -> None:
    """Nothing is copied."""
    with opened(tmp_path, is_json) as found:
        assert found == tmp_path


def test_of_a_zip_only_what_is_wanted_is_unpacked_and_goes_again(tmp_path: Path) -> None:
    """Two members of three; the temporary folder is gone afterwards, also after an error."""
    path = zipped(tmp_path / "m.zip", {"a/x.json": b"1", "a/b/y.json": b"2", "a/big.bin": b"3"})
    with opened(path, is_json) as found:
        assert sorted(str(file.relative_to(found)) for file in found.rglob("*") if file.is_file()) == ["a/b/y.json", "a/x.json"]
    assert not found.exists()
    with pytest.raises(KeyError), opened(path, is_json) as found:
        raise KeyError
    assert not found.exists()


@pytest.mark.parametrize("name", ["../up.json", "a/../../up.json", "/abs.json", "..\\up.json", "C:/x.json"])
def test_a_member_that_would_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    """Named in the sentence; not even the harmless members are unpacked."""
    path = zipped(tmp_path / "m.zip", {"x.json": b"1", name: b"2"})
    with pytest.raises(WeightsError, match="would leave its folder"), opened(path, is_json):
        pass
    assert [file.name for file in tmp_path.rglob("*")] == ["m.zip"]


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    """It could point anywhere."""
    link = zipfile.ZipInfo("x.json")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(WeightsError, match=r"member 'x.json'"), opened(tmp_path / "m.zip", is_json):
        pass


def test_damaged_missing_and_other_files_are_told(tmp_path: Path) -> None:
    """A flipped byte in a member, a text file, nothing at all."""
    path = zipped(tmp_path / "m.zip", {"x.json": b"1234567890" * 9})
    data = bytearray(path.read_bytes())
    data[60] ^= 255
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="damaged"), opened(path, is_json):
        pass
    (tmp_path / "m.txt").write_text("hello")
    with pytest.raises(WeightsError, match="no zip"), opened(tmp_path / "m.txt", is_json):
        pass
    with pytest.raises(UsageError, match="nothing at"), opened(tmp_path / "lost", is_json):
        pass


def test_what_does_not_fit_on_the_disk_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes in the zip's list are added up first."""
    path = zipped(tmp_path / "m.zip", {"x.json": b"0" * 1000})
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 999})())
    with pytest.raises(WeightsError, match="Unpacking needs"), opened(path, is_json):
        pass


def test_json_must_be_an_object(tmp_path: Path) -> None:
    """No file, no JSON and a list are told apart."""
    for text, told in ((None, "cannot be read"), ("{", "not JSON"), ("[1]", "holds list")):
        if text is not None:
            (tmp_path / "x.json").write_text(text)
        with pytest.raises(WeightsError, match=told):
            read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize(
    ("given", "made"),
    [("liver", "liver"), (" left lung ", "left lung"), ("tumour/edema", "tumour_edema"), ("a,b;c", "a_b_c"), (".hidden", "hidden"), ("/", "_")],
)
def test_names_of_structures_can_be_file_names(given: str, made: str) -> None:
    """What a file name or `--roi` cannot hold becomes an underscore."""
    assert structure_name(given) == made


def test_what_unpacks_in_unbounded_memory_is_refused(tmp_path: Path) -> None:
    """bzip2 and LZMA members are decompressed by zipfile without a bound, whatever their entries say."""
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "odd.zip", "w", kind) as archive:
            archive.writestr("x.json", b"1" * 1000)
        with pytest.raises(WeightsError, match="bounded memory"), opened(tmp_path / "odd.zip", is_json):
            pass


@pytest.mark.parametrize("name", ["checkpoint_final.pth", "model_final_checkpoint.model"])
def test_a_checkpoint_alone_is_told_from_a_zip_of_a_model(tmp_path: Path, name: str) -> None:
    """Such files are zips themselves, and would otherwise be unpacked and found wanting."""
    with pytest.raises(WeightsError, match="a checkpoint alone"), opened(zipped(tmp_path / name, {"data.pkl": b"1"}), is_json):
        pass
