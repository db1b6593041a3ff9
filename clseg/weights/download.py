"""Download: one address → one verified file, or an error and nothing under the final name.

Bytes go to a part file with a name of its own beside the target, are hashed as they arrive, and move to the final name
when size and sha256 are those of the manifest.  An interrupted transfer leaves its part file behind and is resumed with
HTTP Range, within a call and by a later one.  The environment's proxies and REQUESTS_CA_BUNDLE are honoured.

Four attempts are made, with pauses that double; an attempt that brought a twentieth of the file or more is no failure
and starts the count anew.  A connection over which next to nothing comes counts as broken.

Refused: addresses that are not https:// (http:// on this machine or with `allow_http` aside), redirects to such
addresses or from outside to this machine, answers that are longer than the manifest says, compressed answers.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin, urlsplit

from clseg.addresses import is_loopback, url_problem
from clseg.errors import WeightsError

if TYPE_CHECKING:
    from requests import Response, Session

_T = TypeVar("_T")

TIMEOUT_S = (10.0, 60.0)  # to connect, and between two pieces of the answer
PAUSES_S = (1.0, 2.0, 4.0)  # before the second, third and fourth attempt
HEADWAYS = 20  # an attempt that brings this part of the file starts the attempts anew, this often
SLOW_BYTES, SLOW_S = 30_000, 30.0  # fewer bytes in so many seconds, and the connection counts as broken
LONGEST_PAUSE_S = 30.0  # however long a server's Retry-After asks for
CHUNK_BYTES = 1 << 18
REDIRECTS = 5
ABANDONED_S = 120.0  # longer than any read or pause: nobody writes to such a part file any more

_PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP answers worth another attempt
_REDIRECT = (301, 302, 303, 307, 308)


class _TryAgain(Exception):
    """An attempt failed in a way that may pass; `wait_s` is what the server asked for."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def download(
    url: str,
    to: Path,
    *,
    expected_bytes: int,
    expected_sha256: str,
    allow_http: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fetch `url` into the file `to`, which appears complete and verified or not at all.

    The folder of `to` must exist.  `progress` is called with (bytes so far, bytes in all).
    Raises WeightsError: the address is refused, the server's bytes are not the expected ones, the connection failed
    four times, the disk is full or not writable.
    """
    _refuse(url, allow_http)
    with _disk_errors(url, to):
        part = _claimed_part(to)
        try:
            _need_space(part, expected_bytes)
            _fill(_Transfer(url, part, expected_bytes, expected_sha256, allow_http, progress or _silent))
            os.replace(part, to)
        finally:
            _leave_for_resuming(part, to)


def read_url(url: str, *, limit_bytes: int, allow_http: bool = False) -> bytes:
    """What lies at `url`, at most `limit_bytes` of it, fetched by the rules of `download` and kept in memory.

    Raises WeightsError: the address is refused, the answer is longer, the connection failed four times.
    """
    from requests import Session

    _refuse(url, allow_http)
    with Session() as session:
        return _patiently(url, lambda: _whole(session, url, limit_bytes, allow_http))


def arrived(to: Path) -> int:
    """How many bytes of the file `to` wait to be resumed."""
    return _bytes_of(_resting_part(to))


def shown(url: str) -> str:
    """The address without user, password and query, fit for messages and logs."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the address"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


@dataclass(frozen=True)
class _Transfer:
    """What is fetched, into which part file, and what it must become."""

    url: str
    part: Path
    bytes: int
    sha256: str
    allow_http: bool
    progress: Callable[[int, int], None]

    def share(self) -> float:
        """How much of the file is here, 0 to 1."""
        return _bytes_of(self.part) / self.bytes


def _refuse(url: str, allow_http: bool) -> None:
    problem = url_problem(url, allow_http=allow_http)
    if problem:
        raise WeightsError(f"{shown(url)} is not fetched: {problem.replace(url, shown(url))}.")


def _fill(transfer: _Transfer) -> None:
    """Attempts until the part file holds the expected bytes."""
    from requests import Session

    with Session() as session:
        _patiently(transfer.url, lambda: _attempt(session, transfer), transfer.share)


def _patiently(url: str, attempt: Callable[[], _T], share: Callable[[], float] = lambda: 0.0) -> _T:
    """The result of the first attempt that does not ask for another one; `share` tells how far they have come."""
    pauses, renewals, attempts = [*PAUSES_S], HEADWAYS, 0
    while True:
        before, attempts = share(), attempts + 1
        try:
            return attempt()
        except _TryAgain as failure:
            if renewals and share() - before >= 1 / HEADWAYS:
                pauses, renewals = [*PAUSES_S], renewals - 1
            if not pauses:
                told = f"{shown(url)} could not be fetched in {attempts} attempts: {failure}."
                raise WeightsError(told, tip=_TIP_NETWORK) from failure
            time.sleep(max(pauses.pop(0), min(failure.wait_s, LONGEST_PAUSE_S)))


def _whole(session: Session, url: str, limit_bytes: int, allow_http: bool) -> bytes:
    """One request for all that lies at `url`."""
    pieces, done = [], 0
    with _network_errors(url), _answer(session, url, 0, allow_http) as response:
        _refuse_answer(response, shown(url), good=(200,))
        for piece in _pieces(response):
            pieces.append(piece)
            done += len(piece)
            if done > limit_bytes:
                raise WeightsError(f"{shown(url)} sent more than {limit_bytes} bytes, thrown away.")
        offered = response.headers.get("Content-Length", "")
    if offered.isdecimal() and done < int(offered):
        raise _TryAgain(f"the answer ended after {done} of {offered} bytes")
    return b"".join(pieces)


def _attempt(session: Session, transfer: _Transfer) -> None:
    """One request for what the part file still lacks, then the check of the whole."""
    part = transfer.part
    if _bytes_of(part) > transfer.bytes:
        part.unlink()
    have = _bytes_of(part)
    digest = _append(session, transfer) if have < transfer.bytes else digest_of(part).hexdigest()
    if digest == transfer.sha256:
        return
    part.unlink()
    if have:
        raise _TryAgain("the resumed file had wrong bytes")
    raise WeightsError(
        f"{shown(transfer.url)} is not the file that the manifest names: expected sha256 {transfer.sha256}, "
        f"got {digest}; it was thrown away.",
        tip="The server may hold another version, or a proxy may have changed the file on its way; try another source.",
    )


def _append(session: Session, transfer: _Transfer) -> str:
    """Fetch the rest of the part file; the sha256 of all of it.  _TryAgain when the connection ends early."""
    start = _bytes_of(transfer.part)
    with _network_errors(transfer.url), _answer(session, transfer.url, start, transfer.allow_http) as response:
        done = _first_byte(response, transfer)
        with transfer.part.open("ab") as file:
            file.truncate(done)
            digest = digest_of(transfer.part)
            for piece in _pieces(response):
                done += len(piece)
                if done > transfer.bytes:
                    file.truncate(0)
                    raise WeightsError(f"{shown(transfer.url)} sent more than {transfer.bytes} bytes, thrown away.")
                file.write(piece)
                digest.update(piece)
                transfer.progress(done, transfer.bytes)
            file.flush()
            os.fsync(file.fileno())
    if done < transfer.bytes:
        raise _TryAgain(f"the answer ended after {done} of {transfer.bytes} bytes")
    return digest.hexdigest()


def _pieces(response: Response) -> Iterator[bytes]:
    """The bytes of the answer as they come; _TryAgain when next to none come for a while."""
    read = getattr(response.raw, "read1", response.raw.read)  # urllib3 1 has no read1: there pieces are full
    since, came = time.monotonic(), 0
    while piece := read(CHUNK_BYTES):
        yield piece
        came += len(piece)
        if time.monotonic() - since > SLOW_S:
            if came < SLOW_BYTES:
                raise _TryAgain(f"only {came} bytes came in {SLOW_S:.0f} seconds")
            since, came = time.monotonic(), 0


@contextmanager
def _answer(session: Session, url: str, start: int, allow_http: bool) -> Iterator[Response]:
    """The answer to a request from byte `start` on, redirects followed as far as they are allowed."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "clseg", **({"Range": f"bytes={start}-"} if start else {})}
    place = url
    for _ in range(REDIRECTS + 1):
        session.trust_env = not is_loopback(place)  # what stays on this machine passes no proxy
        with session.get(place, headers=headers, stream=True, allow_redirects=False, timeout=TIMEOUT_S) as response:
            if response.status_code not in _REDIRECT:
                yield response
                return
            place = _redirected(place, response.headers.get("Location", ""), allow_http)
    raise WeightsError(f"{shown(url)} redirects more than {REDIRECTS} times.")


def _redirected(place: str, location: str, allow_http: bool = False) -> str:
    """Where a redirect leads; WeightsError when that is no place to fetch weights from."""
    target = urljoin(place, location)
    problem = url_problem(target, allow_http=allow_http)
    if problem is None and is_loopback(target) and not is_loopback(place):
        problem = "a server elsewhere may not send us to this machine"
    if problem:
        reason = problem.replace(target, shown(target))
        raise WeightsError(f"{shown(place)} redirects to {shown(target)}, which is refused: {reason}.")
    return target


def _first_byte(response: Response, transfer: _Transfer) -> int:
    """Where in the file this answer begins: at the end of the part file, or 0 when the whole file comes anyway."""
    status, headers, place = response.status_code, response.headers, shown(transfer.url)
    start = _bytes_of(transfer.part)
    _refuse_answer(response, place, good=(200, 206, 416))
    if status == 206 and headers.get("Content-Range") == f"bytes {start}-{transfer.bytes - 1}/{transfer.bytes}":
        return start
    if status in (206, 416):
        transfer.part.unlink(missing_ok=True)
        raise _TryAgain("the server could not go on from where the last transfer ended")
    offered = headers.get("Content-Length", "")
    if offered.isdecimal() and int(offered) != transfer.bytes:
        raise WeightsError(f"{place} offers {offered} bytes, the manifest says {transfer.bytes}.", tip=_TIP_LENGTH)
    return 0


def _refuse_answer(response: Response, place: str, *, good: tuple[int, ...]) -> None:
    """_TryAgain for answers that may get better, WeightsError for the others that are of no use."""
    status, headers = response.status_code, response.headers
    if status in _PASSING:
        asked = headers.get("Retry-After", "")
        raise _TryAgain(f"the server answered {status} {response.reason}", float(asked) if asked.isdecimal() else 0.0)
    if headers.get("Content-Encoding", "identity") != "identity":
        raise WeightsError(f"{place} sends compressed bytes, which was not asked for.")
    if status not in good:
        raise WeightsError(f"{place} answered {status} {response.reason}.")


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    """Failures of `requests` as our own: passing ones as _TryAgain, the others as WeightsError."""
    from requests import exceptions
    from urllib3 import exceptions as below  # what comes while the answer is read

    try:
        yield
    except exceptions.SSLError as error:
        raise WeightsError(f"The certificate of {shown(url)} is not trusted.", tip=_TIP_CERTIFICATE) from error
    except exceptions.ProxyError as error:
        raise _TryAgain("the proxy gave no connection") from error
    except (exceptions.Timeout, below.TimeoutError) as error:
        raise _TryAgain("the server did not answer in time") from error
    except (exceptions.ConnectionError, exceptions.ChunkedEncodingError, below.HTTPError) as error:
        raise _TryAgain("the connection failed or broke off") from error
    except exceptions.RequestException as error:
        raise WeightsError(f"{shown(url)} cannot be fetched: {type(error).__name__}.") from error


@contextmanager
def _disk_errors(url: str, to: Path) -> Iterator[None]:
    """Failures of the disk as WeightsError; a part file that filled the disk does not stay."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _resting_part(to).unlink(missing_ok=True)
        told = f"{shown(url)} cannot be stored as {to}: {error.strerror or error}."
        raise WeightsError(told, tip=_TIP_DISK) from error


def _need_space(part: Path, expected_bytes: int) -> None:
    lacking = expected_bytes - _bytes_of(part)
    free = shutil.disk_usage(part.parent).free
    if free < lacking:
        raise WeightsError(f"The disk of {part.parent} has {free} bytes free, {lacking} are needed.", tip=_TIP_DISK)


def _claimed_part(to: Path) -> Path:
    """A part file of our own; it begins as the longest that an earlier, unfinished transfer left.

    Renaming is atomic: of two processes only one gets what was left.  A part file that another process may still be
    writing to (it has its own name, and was touched lately) is not taken.
    """
    own = to.with_name(f"{to.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    ours = re.compile(re.escape(to.name) + r"(\.\d+-[0-9a-f]{8})?\.part")
    left = [path for path in to.parent.iterdir() if ours.fullmatch(path.name)]
    for path in sorted(left, key=_bytes_of, reverse=True):
        with suppress(OSError):
            if path == _resting_part(to) or time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink() if own.exists() else path.rename(own)
    return own


def _leave_for_resuming(part: Path, to: Path) -> None:
    """An unfinished part file takes the name under which the next transfer looks for it."""
    with suppress(OSError):
        os.replace(part, _resting_part(to)) if _bytes_of(part) else part.unlink(missing_ok=True)


def _resting_part(to: Path) -> Path:
    return to.with_name(f"{to.name}.part")


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def digest_of(path: Path) -> hashlib._Hash:
    """The running sha256 of the bytes so far."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest


def _silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


_TIP_NETWORK = "Check the network and the proxy (HTTPS_PROXY); what has arrived is kept for the next call."
_TIP_LENGTH = "A login page of the network, an error page or another version of the file may have been sent instead."
_TIP_CERTIFICATE = "Behind an inspecting proxy, set REQUESTS_CA_BUNDLE to your organisation's certificates."
_TIP_DISK = "Make room, or set CLSEG_HOME to a folder on a disk that has some and that you may write to."
