"""Lists of lookup servers: what is understood, and what is refused before anything connects."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from multifacet.serving import RankerConfig, ReplicaPolicy, connect_lookup
from multifacet.serving.fleet import Fleet


@pytest.mark.parametrize(
    ("text", "shards"),
    [
        ("127.0.0.1:1", (("127.0.0.1:1",),)),
        ("a:1,b:2", (("a:1", "b:2"),)),
        ("a:1|b:2", (("a:1",), ("b:2",))),
        ("framed:unix:/a, [::1]:2 | framed:b:3", (("framed:unix:/a", "[::1]:2"), ("framed:b:3",))),
    ],
)
def test_commas_part_replicas_and_bars_part_shards(text, shards):
    fleet = Fleet.parse(text)
    assert fleet.shards == shards
    assert Fleet.parse(str(fleet)) == fleet


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an address is empty"),
        ("a:1,", "an address is empty"),
        ("a:1||b:1", "an address is empty"),
        ("a:1,b", "'b' is not understood"),
        ("a:1,b:1|a:1", "a:1 comes more than once"),
        ("framed:unix:/x,framed:unix:///x", "framed:unix:/x comes more than once"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Fleet.parse(text)
    with pytest.raises(ValidationError, match=message):
        RankerConfig(releases=("x",), lookup=text)


def test_hedging_without_a_second_server_is_refused_where_it_is_configured():
    with pytest.raises(ValidationError, match="hedging needs a second"):
        RankerConfig(releases=("x",), lookup="a:1,b:1|c:1", lookup_hedge_after_s=0.01)
    with pytest.raises(ValueError, match="hedging needs a second"):
        connect_lookup("a:1", policy=ReplicaPolicy(hedge_quantile=0.9))
    with pytest.raises(ValidationError, match="two ways to say the same"):
        ReplicaPolicy(hedge_after_s=0.1, hedge_quantile=0.9)


def test_tls_is_refused_where_one_server_of_many_is_asked_over_frames():
    fleet = Fleet.parse("10.0.0.1:7401,framed:10.0.0.2:7401")
    fleet.check_tls(wanted=False)
    with pytest.raises(ValueError, match=r"framed:10\.0\.0\.2:7401: frames travel in plain text"):
        fleet.check_tls(wanted=True)
