"""What the user's environment variables say; nothing else in `clseg` reads them.

CLSEG_HOME         folder for downloaded weights and for the user's own weights with their `weights_manifest.json`;
                   without it downloads go to the user's cache folder, e.g. ~/.cache/clseg, and own weights,
                   which nobody can download again, to the data folder, e.g. ~/.local/share/clseg
CLSEG_OFFLINE      1, true, yes or on: never open a socket
CLSEG_WEIGHTS_URL  a mirror, https://… or file:///…, holding every asset under its manifest `file` name;
                   it takes the place of the web addresses in the manifest

WORLD_SIZE and LOCAL_RANK are set by torchrun, see `torchrun`.  OMP_WAIT_POLICY and GOMP_SPINCOUNT say how threads wait,
see `let_threads_sleep`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from clseg.errors import UsageError

_YES = ("1", "true", "yes", "on")
_NO = ("", "0", "false", "no", "off")


@dataclass(frozen=True)
class Environment:
    """The settings found: where downloads and own weights lie; `mirror` is None when no mirror is set."""

    home: Path
    own: Path
    offline: bool
    mirror: str | None


def environment(variables: Mapping[str, str] = os.environ) -> Environment:
    """Read the variables named above, now; a CLSEG_OFFLINE that is neither yes nor no is a UsageError."""
    home, own = _folders(variables.get("CLSEG_HOME", "").strip())
    return Environment(
        home=home,
        own=own,
        offline=_flag("CLSEG_OFFLINE", variables.get("CLSEG_OFFLINE", "")),
        mirror=variables.get("CLSEG_WEIGHTS_URL", "").strip() or None,
    )


def let_threads_sleep(variables: MutableMapping[str, str] = os.environ) -> bool:
    """Tell GNU's OpenMP, before it is loaded, that threads which wait shall soon sleep; False where the user has said how they wait."""
    if "OMP_WAIT_POLICY" in variables or "GOMP_SPINCOUNT" in variables:
        return False
    variables["GOMP_SPINCOUNT"] = "1000"
    return True


def torchrun(variables: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """How many processes torchrun has started, and the number of this one on its machine; (1, 0) without torchrun."""
    try:
        return int(variables.get("WORLD_SIZE", "1")), int(variables.get("LOCAL_RANK", "0"))
    except ValueError as error:
        raise UsageError(f"WORLD_SIZE and LOCAL_RANK must be whole numbers, as torchrun sets them: {error}.") from error


def _folders(given: str) -> tuple[Path, Path]:
    if given:
        return (Path(given).expanduser().absolute(),) * 2
    from platformdirs import user_cache_dir, user_data_dir

    return Path(user_cache_dir("clseg", appauthor=False)), Path(user_data_dir("clseg", appauthor=False))


def _flag(name: str, given: str) -> bool:
    word = given.strip().lower()
    if word not in _YES + _NO:
        raise UsageError(f"{name} is '{given}'; expected one of {', '.join(_YES)} or {', '.join(_NO[1:])}.")
    return word in _YES
