"""What only asynchronous clients do; that they answer and refuse as the others is tested with the lookup server."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from multifacet.serving import (
    AsyncLookupClient,
    AsyncRankerClient,
    DeadlineExceededError,
    InvalidRequestError,
    LookupConfig,
    LookupServer,
    RankerConfig,
    RankerServer,
    ReplicaPolicy,
    UnauthenticatedError,
    UnavailableError,
    VersionNotLoadedError,
)


@pytest.fixture(params=["grpc", "framed"])
def kind(request):
    return request.param


def address_of(server, kind):
    return server.address if kind == "grpc" else server.framed_address


def test_many_lookups_of_one_loop_run_at_once_over_connections_that_are_kept(release, lookup_server, kind):
    async def main():
        async with AsyncLookupClient(address_of(lookup_server, kind), timeout_s=10) as client:
            for _ in range(2):
                pins = [np.arange(place, place + 5) * 7 - 500 for place in range(40)]
                answers = await asyncio.gather(*(client.lookup(release.version, {"pin": ids}) for ids in pins))
            one_by_one = [await client.lookup(release.version, {"pin": ids}) for ids in pins]
            for answer, alone in zip(answers, one_by_one, strict=True):
                np.testing.assert_array_equal(answer.tables["pin_kge"].rows, alone.tables["pin_kge"].rows)
            if kind == "framed":
                assert 1 <= len(client._connection._idle) <= 40
                assert not client._connection._busy

    asyncio.run(main())


def test_a_lookup_whose_task_is_cancelled_leaves_the_client_usable(release, kind, tmp_path, monkeypatch):
    with LookupServer(LookupConfig(releases=(release.path,), framed_listen=f"unix:{tmp_path}/f.sock")) as server:
        fetch, held = server._fetch, threading.Event()

        def wait(request, send):
            assert held.wait(20)
            return fetch(request, send)

        monkeypatch.setattr(server, "_fetch", wait)
        monkeypatch.setattr(server._framed, "_quick", lambda _frame, _descriptor: None)

        async def main():
            async with AsyncLookupClient(address_of(server, kind), timeout_s=10) as client:
                task = asyncio.create_task(client.lookup(release.version, {"user": [1000]}))
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                started = time.monotonic()
                with pytest.raises(DeadlineExceededError):
                    await client.lookup(release.version, {"user": [1000]}, timeout_s=0.05)
                assert time.monotonic() - started < 5
                held.set()
                assert (await client.lookup(release.version, {"user": [1000]})).version == release.version

        asyncio.run(main())


def test_a_server_that_was_restarted_is_asked_again_over_a_new_connection(release, kind, tmp_path):
    config = LookupConfig(releases=(release.path,), listen=f"unix:{tmp_path}/g.sock", framed_listen=f"unix:{tmp_path}/f.sock")

    async def main():
        address = config.listen if kind == "grpc" else f"framed:{config.framed_listen}"
        async with AsyncLookupClient(address, timeout_s=10) as client:
            for _ in range(2):
                server = await asyncio.to_thread(LookupServer(config).__enter__)
                await client.wait_for_versions([release.version], timeout_s=5)
                assert (await client.lookup(release.version, {"user": [1000]})).version == release.version
                await asyncio.to_thread(server.stop, 0)
            with pytest.raises(UnavailableError, match="lookup server"):
                await client.lookup(release.version, {"user": [1000]})
            with pytest.raises(UnavailableError, match="was not ready within"):
                await client.wait_for_versions([release.version], timeout_s=0.1)

    asyncio.run(main())


def test_a_token_is_brought_over_every_connection(release, kind, tmp_path):
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    config = LookupConfig(releases=(release.path,), framed_listen=f"unix:{tmp_path}/f.sock", token_file=token)
    with LookupServer(config) as server:

        async def main():
            async with AsyncLookupClient(address_of(server, kind), timeout_s=10, token_file=token) as client:
                assert (await client.lookup(release.version, {"user": [1000]})).version == release.version
            async with AsyncLookupClient(address_of(server, kind), timeout_s=10) as client:
                with pytest.raises(UnauthenticatedError):
                    await client.lookup(release.version, {"user": [1000]})

        asyncio.run(main())


def test_hedging_alone_and_frames_over_tls_are_refused(tmp_path):
    async def main():
        with pytest.raises(ValueError, match="hedging needs a second"):
            AsyncLookupClient("a:1", policy=ReplicaPolicy(hedge_after_s=0.1))
        with pytest.raises(ValueError, match="plain text"):
            AsyncLookupClient("framed:a:1", tls_ca=tmp_path / "ca.pem")

    asyncio.run(main())


def test_an_asynchronous_ranker_client_gets_the_scores_and_errors_of_the_other(release, lookup_server, request_of):
    config = RankerConfig(releases=(release.path,), lookup=lookup_server.framed_address, lookup_timeout_s=10)
    with RankerServer(config) as ranker:

        async def main():
            async with AsyncRankerClient(ranker.address, timeout_s=10) as client:
                requests = [request_of(10 + number, seed=number) for number in range(6)]
                answers = await asyncio.gather(
                    *(client.rank(ids, candidates, dense=dense) for ids, candidates, dense in requests)
                )
                assert [len(answer.ctr) for answer in answers] == [10, 11, 12, 13, 14, 15]
                assert {answer.version for answer in answers} == {release.version}
                (version,) = (await client.describe()).versions
                assert version.version == release.version
                ids, candidates, dense = requests[0]
                with pytest.raises(InvalidRequestError, match="shape"):
                    await client.rank(ids, candidates, dense=dense[0])
                with pytest.raises(VersionNotLoadedError) as refused:
                    await client.rank(ids, candidates, dense=dense, version="f" * 64)
                assert refused.value.loaded == (release.version,)

        asyncio.run(main())
