"""Which addresses may be fetched from, and which may be named."""

from __future__ import annotations

import pytest

from clseg.addresses import is_loopback, is_relative, source_problem, url_problem


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a%20b?x=1",
        "http://127.0.0.1:80/x",
        "http://127.9.9.9/x",
        "http://localhost/x",
        "http://[::1]:8/x",
    ],
)
def test_addresses_that_are_safe(url: str):
    """https anywhere and http on this machine may be fetched from."""
    assert url_problem(url) is None
    assert source_problem(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/x",
        "http://127.0.0.1.example.org/x",
        "http://127.0.0.1@example.org/x",
        "http://example.org\\@127.0.0.1/x",
        "http://localhost.example.org/x",
        "http://0.0.0.0/x",
        "http://[::2]/x",
        "http://[::1/x",
        "http://127.0.0.1:port/x",
        "https://host/a b",
        "https://host/\n",
        "ftp://127.0.0.1/x",
        "https:x",
        "",
    ],
)
def test_addresses_that_are_not_safe(url: str):
    """Everything else is refused, look-alikes of this machine included."""
    assert url_problem(url)


def test_http_elsewhere_may_be_named_but_not_fetched_unless_allowed():
    """A manifest is a list; whether an unencrypted address is asked is decided by whoever asks."""
    assert source_problem("http://example.org/x") is None
    assert "--allow-http" in url_problem("http://example.org/x")
    assert url_problem("http://example.org/x", allow_http=True) is None
    assert url_problem("ftp://example.org/x", allow_http=True)


def test_this_machine_and_others():
    """Loopback by number or name; an unresolved name that looks alike is not."""
    assert all(map(is_loopback, ("http://127.0.0.1/x", "http://localhost:80/x", "https://[::1]/x")))
    assert not any(map(is_loopback, ("http://localhost.example.org/x", "http://10.0.0.1/x", "weights/x")))


def test_relative_sources():
    """What has no scheme lies beside its manifest; one letter and a colon is no scheme, and no path that is accepted."""
    assert is_relative("weights/x.safetensors")
    assert not is_relative("package:data/x")
    assert is_relative("C:/x")
    assert source_problem("C:/x")
    assert source_problem("../x")
    assert source_problem("weights/x.safetensors") is None
