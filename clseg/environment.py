"""What the user's environment variables say; nothing else in `clseg` reads them.

CLSEG_HOME         folder for downloaded weights and the user's own `weights_manifest.json`;
                   without it the user's cache folder, e.g. ~/.cache/clseg
CLSEG_OFFLINE      1, true, yes or on: never open a socket
CLSEG_WEIGHTS_URL  a mirror, https://… or file:///…, holding every asset under its manifest `file` name;
                   it takes the place of the web addresses in the manifest
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clseg.errors import UsageError

_YES = ("1", "true", "yes", "on")
_NO = ("", "0", "false", "no", "off")


@dataclass(frozen=True)
class Environment:
    """The settings found; `mirror` is None when no mirror is set."""

    home: Path
    offline: bool
    mirror: str | None


def environment(variables: Mapping[str, str] = os.environ) -> Environment:
    """Read the variables named above, now; a CLSEG_OFFLINE that is neither yes nor no is a UsageError."""
    return Environment(
        home=_home(variables.get("CLSEG_HOME", "").strip()),
        offline=_flag("CLSEG_OFFLINE", variables.get("CLSEG_OFFLINE", "")),
        mirror=variables.get("CLSEG_WEIGHTS_URL", "").strip() or None,
    )


def _home(given: str) -> Path:
    if given:
        return Path(given).expanduser().absolute()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("clseg", appauthor=False))


def _flag(name: str, given: str) -> bool:
    word = given.strip().lower()
    if word not in _YES + _NO:
        raise UsageError(f"{name} is '{given}'; expected one of {', '.join(_YES)} or {', '.join(_NO[1:])}.")
    return word in _YES
