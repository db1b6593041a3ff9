"""Addresses: which URLs and paths weights may come from and go to."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # two letters or more: `C:` is a drive
_NOT_PORTABLE = set('\\:*?"<>|')


def url_problem(url: str, *, allow_http: bool = False) -> str | None:
    """Why nothing may be fetched from this address; None when it is https://, or http:// on this machine or allowed."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return f"'{url}' is not a valid address"
    if not host or "\\" in url or not url.isascii() or not url.isprintable() or " " in url:
        return f"'{url}' is not a valid address"
    if url.startswith("https://"):
        return None
    if url.startswith("http://"):
        told = f"'{url}' is not encrypted, http:// is for this machine only; use https:// or allow it with --allow-http"
        return None if allow_http or is_loopback(url) else told
    return f"'{url}' is not an https:// address"


def is_loopback(url: str) -> bool:
    """True when the host of the address is this machine itself: 127.0.0.0/8, localhost or [::1]."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def source_problem(source: str) -> str | None:
    """Why a manifest may not name this source; None when it may."""
    scheme = _SCHEME.match(source)
    if scheme is None:
        return path_problem("the source", source)
    if scheme[1] == "package":
        return path_problem("the source", source.removeprefix("package:"))
    if scheme[1] == "file":
        good = re.match(r"file://(localhost)?/.", source)
        return None if good else f"the source '{source}' must look like file:///folder/file"
    if scheme[1] in ("https", "http"):
        return url_problem(source, allow_http=True)  # who fetches decides
    known = "package:, file://, https:// or a relative path"
    return f"the source '{source}' has the unknown scheme '{scheme[1]}', expected {known}"


def is_relative(source: str) -> bool:
    """True when the source lies beside its manifest."""
    return not _SCHEME.match(source)


def path_problem(what: str, path: str) -> str | None:
    """Why this is not a plain path below a folder, the same on every system."""
    parts = path.split("/")
    if not path.isprintable() or _NOT_PORTABLE & set(path) or any(part.strip(" ") in ("", ".", "..") for part in parts):
        return f"{what} '{path}' must be a relative path with '/' that stays in its folder"
    return None
