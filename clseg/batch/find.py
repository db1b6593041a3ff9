"""Find: which scans are meant by a folder, a pattern or a list.

| `-i`                                     | means                                                                  |
|------------------------------------------|------------------------------------------------------------------------|
| a file                                   | one scan                                                               |
| a folder with DICOM files in it, or with | one scan, as ever: the series is chosen by rule                        |
| folders of one and the same DICOM study  |                                                                        |
| any other folder                         | every scan file in it and below; every folder of DICOM files; of a     |
|                                          | folder with `ct.nii.gz` in it (or image, imaging) that file alone      |
| a pattern with * ? [ ]                   | what it matches; folders as above                                      |
| a .txt file                              | a path a line; empty lines and # comments do not count                 |
| a .csv file                              | a row each: the column `path` or `ct`, and `case` if need be           |

Scan files are told by their endings, or else by their content; relative paths of a list start at the list.  What a run of
ours has written, as its run.json lists it, is never taken for a scan in a folder.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clseg.batch.case import CT_NAMES, SCAN_ENDINGS, Case, named, title_of
from clseg.errors import InputError, UsageError
from clseg.io.listing import files_in, told

LISTS = (".txt", ".csv")
LOOKED_FOR = "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd) and DICOM (.dcm, .zip), or their content under other names"
NO_SCAN = "Give the scan's file, or the folder that holds it; results of clseg are never taken for scans."
_SNIFF = 1024


@dataclass(frozen=True)
class Scan:
    """Something that was found; `study` tells DICOM studies apart and is None for other files, and for DICOM that does not say."""

    path: Path
    study: str | None = None


def cases_of(given: str | os.PathLike[str], output: str | os.PathLike[str]) -> list[Case] | None:
    """The cases that `given` means, see above; None for a single scan and for what is not there.

    Nothing inside `output` is taken for a scan, because it holds results.  Raises UsageError for patterns and lists without
    a scan, lists that cannot be understood and an output that is the input or lies over it, InputError for a folder without a scan.
    """
    path, place = Path(given), Path(output).absolute()
    if not path.exists():
        return _outside(_matching(str(given), place), place) if any(sign in str(given) for sign in "*?[") else None
    if path.is_dir():
        found = scans_in(path.absolute(), place)
        if not found:
            raise InputError(f"There is no scan in '{given}': looked for {LOOKED_FOR}, found {told(files_in(path))}.", tip=NO_SCAN)
        if found[0].path == path.absolute():
            return None
        if os.path.realpath(path) == os.path.realpath(place):
            raise UsageError(f"The output {output} is the folder of the scans.", tip="Give the results a folder of their own.")
        return _outside(named([scan.path for scan in found]), place)
    if path.suffix.lower() in LISTS and not is_scan(path):
        return _outside(read_list(path), place)
    return None


def scans_in(folder: Path, output: Path | None = None, *, top: bool = True) -> list[Scan]:
    """The scans in a folder by name, those below it included; the folder itself where it is one DICOM scan.

    InputError when a folder cannot be read.
    """
    files, folders = _contents(folder, output)
    files = _without_results(files)
    if not top and (ct := next((file for file in files if title_of(file).lower() in CT_NAMES and _has_ending(file)), None)):
        return [Scan(ct)]
    dicom = next((file for file in files if _is_dicom(file)), None)
    if dicom:
        return [Scan(folder, _study(dicom))]
    found = []
    for entry in sorted([*files, *folders]):
        if entry in folders:
            found += scans_in(entry, output, top=False)
        elif is_scan(entry):
            found.append(Scan(entry))
    one_study = len({scan.study for scan in found}) == 1 and found[0].study is not None
    return [Scan(folder, found[0].study)] if one_study else found


def is_scan(file: Path) -> bool:
    """Whether a file should be a scan, by its ending, or is one, by its content."""
    name = file.name.lower()
    if name.endswith(".zip"):
        return _holds_dicom(file)
    if _has_ending(file):
        return True
    start = _start(file)
    if start[:2] == b"\x1f\x8b":
        start = _start(file, gzip.open)
    nifti = start[344:347] in (b"n+1", b"ni1") or start[4:7] in (b"n+2", b"ni2")
    return nifti or start[:4] == b"NRRD" or (b"NDims" in start and b"DimSize" in start)


def read_list(file: Path) -> list[Case]:
    """The cases of a .txt or .csv file; UsageError when it cannot be understood or is empty."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The list '{file}' cannot be read as text: {error}.", tip="Save it as UTF-8.") from error
    here = file.absolute().parent
    rows = _rows(text, file) if file.suffix.lower() == ".csv" else [("", line.strip()) for line in text.splitlines()]
    rows = [(name, path) for name, path in rows if path and not path.startswith("#")]
    if not rows:
        raise UsageError(f"The list '{file}' names no scan.", tip="Give a path a line, or a .csv with the column path.")
    paths = [_plain(here / Path(path).expanduser()) for _, path in rows]
    return named(paths, {path: name for path, (name, _) in zip(paths, rows, strict=True) if name})


def _rows(text: str, file: Path) -> list[tuple[str, str]]:
    """Case (or nothing) and path of every row."""
    header = text.split("\n", 1)[0]
    reader = csv.DictReader(text.splitlines(), delimiter=next((sign for sign in ",;\t" if sign in header), ","))
    columns = {str(name).strip().lower(): name for name in reader.fieldnames or ()}
    path = columns.get("path", columns.get("ct"))
    if path is None:
        raise UsageError(f"The list '{file}' needs a column path or ct, it has: {', '.join(columns) or 'nothing'}.")
    case = columns.get("case")
    return [((row.get(case) or "").strip() if case else "", (row.get(path) or "").strip()) for row in reader]


def _matching(pattern: str, output: Path) -> list[Case]:
    """What a pattern matches: scan files, and the scans in folders."""
    found: list[Path] = []
    for match in sorted(glob.glob(os.path.expanduser(pattern), recursive=True)):
        path = _plain(Path(match).absolute())
        if _same(path, output) or output in path.parents:
            continue
        if path.is_dir():
            found += [scan.path for scan in scans_in(path, output, top=False)]
        elif is_scan(path):
            found.append(path)
    if not found:
        raise UsageError(f"No scan matches '{pattern}'.", tip="See what `ls` finds; the pattern belongs in quotes.")
    return named(list(dict.fromkeys(found)))


def _outside(cases: Sequence[Case], output: Path) -> list[Case]:
    """The cases, if no scan lies where its own results go."""
    for case in cases:
        if output / case.name in (case.path, *case.path.parents):
            raise UsageError(f"The output would lie over the input {case.path}.", tip="Choose another output.")
    return list(cases)


def _contents(folder: Path, output: Path | None) -> tuple[list[Path], list[Path]]:
    """Files and folders by name, hidden ones and the output left out; a link back to a folder above is not followed."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.name.startswith(".") or (output and _same(path, output)):
                    continue
                if entry.is_dir():
                    if not (entry.is_symlink() and path.resolve() in (folder, *folder.resolve().parents, folder.resolve())):
                        folders.append(path)
                elif entry.is_file():
                    files.append(path)
    except OSError as error:
        raise InputError(f"The folder '{folder}' cannot be read: {error.strerror}.") from error
    return sorted(files), sorted(folders)


def _without_results(files: list[Path]) -> list[Path]:
    """Without the files that a run.json of ours among them lists."""
    written = {name for file in files if file.name == "run.json" or file.name.endswith(".run.json") for name in _listed_in(file)}
    return [file for file in files if file.name not in written]


def _listed_in(run: Path) -> list[str]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads(run.read_text(encoding="utf-8"))
        if "clseg" in said["versions"]:
            return [str(name) for name in said["files"]]
    return []


def _same(path: Path, other: Path) -> bool:
    return path.name == other.name and os.path.realpath(path) == os.path.realpath(other)


def _plain(path: Path) -> Path:
    """Without `..` and `.`; links stay as they are."""
    return Path(os.path.normpath(path))


def _has_ending(file: Path) -> bool:
    return file.name.lower().endswith(SCAN_ENDINGS)


def _is_dicom(file: Path) -> bool:
    """By content, but what is called like another format is not opened."""
    from clseg.io.dicom.headers import is_dicom

    name = file.name.lower()
    return not name.endswith(tuple(e for e in SCAN_ENDINGS if e != ".dcm")) and is_dicom(file)


def _study(file: Path) -> str | None:
    """Study and patient of a DICOM file as one word; None where it does not say."""
    from clseg.io.dicom.headers import damage_told

    with suppress(InputError), damage_told(file):
        from pydicom import dcmread

        header = dcmread(file, stop_before_pixels=True, force=True, specific_tags=["StudyInstanceUID", "PatientID"])
        if uid := header.get("StudyInstanceUID"):
            return f"{uid} {header.get('PatientID') or ''}"
    return None


def _holds_dicom(archive: Path) -> bool:
    """Whether some file in a zip archive is DICOM, or might be: it is damaged or locked, which reading it will tell."""
    from clseg.io.dicom.headers import looks_like_dicom

    try:
        with zipfile.ZipFile(archive) as opened:
            return any(looks_like_dicom(start) for start in _starts(opened))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError):
        return True


def _starts(opened: zipfile.ZipFile) -> Iterator[bytes]:
    for member in opened.infolist():
        if not member.is_dir():
            with opened.open(member) as stream:
                yield stream.read(132)


def _start(file: Path, opening=open) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    with suppress(OSError, EOFError, zlib.error), opening(file, "rb") as stream:
        return stream.read(_SNIFF)
    return b""
