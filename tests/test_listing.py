"""What a folder holds, in words."""

from __future__ import annotations

from clseg.io.listing import files_in, told


def test_files_come_by_name_and_those_of_folders_after_them(tmp_path):
    """As paths from the folder on; hidden files and what lies in hidden folders are left out."""
    for name in ("b.txt", "a.txt", ".hidden", "sub/c.txt", ".git/config", "sub/deep/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(files_in(tmp_path)) == ["a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"]


def test_three_names_and_how_many_there_are():
    """One is not `1 files`; more than 10,000 are not counted, and not waited for."""
    assert [told(["a"] * count) for count in (0, 1, 3)] == ["no files", "1 file: a", "3 files: a, a, a"]
    assert told("abcd") == "4 files: a, b, c and 1 more"
    assert told(str(number) for number in range(10_000)) == "10,000 files: 0, 1, 2 and 9,997 more"
    endless = iter(int, 1)
    assert told(map(str, endless)) == "more than 10,000 files: 0, 0, 0 and more"
