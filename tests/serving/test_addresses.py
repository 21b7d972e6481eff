"""Addresses: what is understood, and what only this machine can reach."""

from __future__ import annotations

import socket

import pytest
from pydantic import ValidationError

from multifacet.serving import LookupConfig, RankerConfig
from multifacet.serving.addresses import Address


@pytest.mark.parametrize(
    ("text", "parsed", "local"),
    [
        ("127.0.0.1:0", "127.0.0.1:0", True),
        ("localhost:80", "localhost:80", True),
        ("[::1]:443", "[::1]:443", True),
        ("127.8.9.10:7000", "127.8.9.10:7000", True),
        ("unix:/run/a.sock", "unix:/run/a.sock", True),
        ("unix:///run/a.sock", "unix:/run/a.sock", True),
        ("0.0.0.0:7000", "0.0.0.0:7000", False),
        ("[::]:7000", "[::]:7000", False),
        ("10.0.0.7:7000", "10.0.0.7:7000", False),
        ("lookup.internal:7000", "lookup.internal:7000", False),
        ("localhost.example.com:7000", "localhost.example.com:7000", False),
    ],
)
def test_addresses_are_understood(text, parsed, local):
    address = Address.parse(text)
    assert (address.text, address.is_local) == (parsed, local)


@pytest.mark.parametrize(
    "text",
    ["", "7000", ":7000", "host", "host:", "host:65536", "host:-1", "host:7 0", "host:\u0667", "::1:7000", "[::1]", "[host]x:1",
     "dns:///host:70", "unix:", "http://host:70"],
)  # fmt: skip
def test_other_forms_are_refused_with_those_that_are_understood(text):
    with pytest.raises(ValueError, match="expected HOST:PORT, \\[IPV6\\]:PORT or unix:/PATH"):
        Address.parse(text)


def test_a_unix_path_beyond_the_system_s_limit_is_refused_before_it_is_bound():
    with pytest.raises(ValueError, match="the system allows 107"):
        Address.parse("unix:/" + "x" * 107)
    assert Address.parse("unix:/" + "x" * 106).unix_path is not None


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "10.1.2.3:7000", "example.com:7000"])
def test_an_address_that_others_reach_needs_tls_or_an_explicit_word(listen, tmp_path):
    with pytest.raises(ValidationError, match="can be reached from other machines"):
        LookupConfig(releases=(tmp_path,), listen=listen)
    assert LookupConfig(releases=(tmp_path,), listen=listen, insecure_public=True).listen == listen
    with_tls = RankerConfig(
        releases=(tmp_path,),
        lookup="127.0.0.1:1",
        listen=listen,
        tls_certificate=tmp_path / "a.pem",
        tls_key=tmp_path / "b.pem",
    )
    assert with_tls.listen == listen


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tls_certificate": "a.pem"}, "go together"),
        ({"tls_client_ca": "a.pem"}, "needs tls_certificate"),
        ({"metrics_listen": "0.0.0.0:9100"}, "has no TLS"),
        ({"metrics_listen": "unix:/a"}, "Prometheus scrapes TCP"),
        ({"releases": ()}, "at least 1"),
        ({"listn": "127.0.0.1:0"}, "listn"),
        ({"workers": 0}, "greater than 0"),
    ],
)
def test_a_wrong_configuration_is_refused_by_its_field(fields, message, tmp_path):
    with pytest.raises(ValidationError, match=message):
        LookupConfig(**{"releases": (tmp_path,), **fields})


def test_every_field_of_the_configurations_has_a_help_text():
    for config in (LookupConfig, RankerConfig):
        assert [name for name, field in config.model_fields.items() if not field.description] == []


def test_a_socket_left_by_a_killed_server_is_taken_over_but_not_a_live_one_nor_a_file(tmp_path):
    address = Address.parse(f"unix:{tmp_path / 'a.sock'}")
    address.refuse_if_taken()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address.unix_path))
        listener.listen()
        with pytest.raises(OSError, match="another server listens"):
            address.refuse_if_taken()
    address.refuse_if_taken()  # closed, but the file is still there
    address.unix_path.unlink()
    address.unix_path.write_text("a file")
    with pytest.raises(OSError, match="is not a socket"):
        address.refuse_if_taken()
