"""A client that is used before a fork gives parent and child their own rows, whatever else was under way."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest

from multifacet.serving import LookupServer, publish

# Workers of a pre-forking server. Threads keep the client busy, so that forks come
# at any moment of a request: with locks held, requests half sent, answers half read.
_PRELUDE = """
import asyncio, os, sys, threading, time, warnings
import numpy as np
from multifacet import serving
from multifacet.serving.policy import ReplicaPolicy

warnings.simplefilter("ignore", DeprecationWarning)  # that a process with threads forks
address, version, hedge = sys.argv[1:]
policy = ReplicaPolicy(hedge_after_s=float(hedge)) if hedge else ReplicaPolicy()
pins = 7 * np.arange(300) - 500
X, Y = pins[:64], pins[100:164]

def ended(child):
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status}"

def in_child(work):
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print("child:", type(error).__name__, error, file=sys.stderr, flush=True)
        os._exit(1)
"""

_SYNCHRONOUS = (
    _PRELUDE
    + """
client = serving.connect_lookup(address, timeout_s=20, policy=policy)
rows = lambda ids: client.lookup(version, {"pin": ids}).tables["pin_kge"].rows
true = {0: rows(X), 1: rows(Y)}
assert (true[0] != true[1]).any()

def check(which):
    assert (rows((X, Y)[which]) == true[which]).all(), "another's rows"

# Child and parent ask at the same time, for different rows, over what was one connection.
child = in_child(lambda: (time.sleep(0.05), check(0)))
pending = client.start(version, {"pin": Y})
time.sleep(0.2)
assert (pending.result().tables["pin_kge"].rows == true[1]).all(), "the child's rows"
ended(child)

# What the parent sent is the parent's.
pending = client.start(version, {"pin": X})

def take_it():
    try:
        pending.result()
    except serving.UnavailableError as error:
        assert "before the process was forked" in str(error), error
        pending.cancel()
        check(1)
    else:
        raise AssertionError("the child took the parent's answer")

ended(in_child(take_it))
assert (pending.result().tables["pin_kge"].rows == true[0]).all()

done, wrong = threading.Event(), []

def ask(which):
    while not done.is_set():
        try:
            check(which)
        except BaseException as error:
            wrong.append(error)

threads = [threading.Thread(target=ask, args=(number % 2,)) for number in range(3)]
for thread in threads:
    thread.start()
for number in range(25):
    ended(in_child(lambda: [check((number + turn) % 2) for turn in range(3)]))
done.set()
for thread in threads:
    thread.join()
assert not wrong, wrong
client.close()
print("right")
"""
)

_ASYNCHRONOUS = (
    _PRELUDE
    + """
loop = asyncio.new_event_loop()
async def connect():
    return serving.AsyncLookupClient(address, timeout_s=20, policy=policy)
client = loop.run_until_complete(connect())
async def rows(ids):
    return (await client.lookup(version, {"pin": ids})).tables["pin_kge"].rows
true = [loop.run_until_complete(rows(ids)) for ids in (X, Y)]

async def check(which):
    for _ in range(5):
        assert (await rows((X, Y)[which]) == true[which]).all(), "another's rows"

def on_its_own_loop():
    time.sleep(0.01)
    asyncio.run(check(0))

for _ in range(8):
    child = in_child(on_its_own_loop)
    loop.run_until_complete(check(1))
    ended(child)
loop.run_until_complete(client.close())
loop.close()
print("right")
"""
)


@pytest.fixture(scope="module")
def transport(make_transport):
    return make_transport("framed-unix")


@pytest.fixture(scope="module")
def whole(release, transport):
    with contextlib.ExitStack() as running:
        servers = [LookupServer(transport.config(releases=(release.path,))) for _ in range(2)]
        yield release.version, [transport.address(running.enter_context(server)) for server in servers]


@pytest.fixture(scope="module")
def split(model, transport, tmp_path_factory):
    release = publish(model.path, tmp_path_factory.mktemp("split") / "release", shards=2)
    with contextlib.ExitStack() as running:
        servers = [LookupServer(transport.config(releases=(release.path,), shard=shard)) for shard in range(2)]
        yield release.version, [transport.address(running.enter_context(server)) for server in servers]


@pytest.mark.parametrize("script", [_SYNCHRONOUS, _ASYNCHRONOUS], ids=["synchronous", "asyncio"])
@pytest.mark.parametrize("fleet", ["one", "replicas", "hedged", "shards"])
def test_parent_and_child_get_their_own_rows(fleet, script, whole, split):
    version, addresses = split if fleet == "shards" else whole
    joined = {"one": addresses[0], "shards": "|".join(addresses)}.get(fleet, ",".join(addresses))
    # Half a millisecond: a good part of the requests is asked of both servers.
    arguments = [joined, version, "0.0005" if fleet == "hedged" else ""]
    run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=100, check=False)
    assert (run.stdout, run.returncode) == ("right\n", 0), run.stderr
