"""Ranking over HTTP gives the scores that gRPC gives, asked by Triton's own client too; what is wrong is refused and told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifacet.serving import InvalidRequestError, LookupServer, RankerClient, RankerConfig, RankerServer, Release
from multifacet.serving.http import HttpConfig, make_app
from multifacet.serving.http.arguments import as_arguments
from multifacet.serving.http.tensors import BINARY_HEADER, read_inference
from multifacet.serving.wire.packing import pack_rank

uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'multifacet[http]'")


class Running:
    """An application on a port of this machine."""

    def __init__(self, config: HttpConfig):
        self._server = uvicorn.Server(
            uvicorn.Config(make_app(config), host="127.0.0.1", port=0, log_config=None, access_log=False)
        )
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        return f"127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def ranker(release: Release, lookup_server: LookupServer) -> Iterator[RankerServer]:
    with RankerServer(RankerConfig(releases=(release.path,), lookup=lookup_server.address)) as server:
        yield server


@pytest.fixture(scope="module")
def address(ranker: RankerServer) -> Iterator[str]:
    with Running(HttpConfig(ranker=ranker.address, timeout_s=20)) as address:
        yield address


@pytest.fixture(scope="module")
def http(address: str) -> Iterator[httpx.Client]:
    with connect(address) as client:
        yield client


def connect(address: str) -> httpx.Client:
    return httpx.Client(base_url=f"http://{address}", timeout=30, trust_env=False)


def document_of(request_ids: dict[str, int], candidate_ids: dict[str, Any], dense: np.ndarray) -> dict[str, Any]:
    count = len(dense)
    return {
        "id": "r 1",
        "inputs": [
            *({"name": name, "datatype": "INT64", "shape": [1], "data": [value]} for name, value in request_ids.items()),
            {"name": "pin", "datatype": "INT64", "shape": [count], "data": candidate_ids["pin"].tolist()},
            {"name": "advertiser", "datatype": "BYTES", "shape": [count], "data": candidate_ids["advertiser"]},
            {"name": "dense", "datatype": "FP32", "shape": list(dense.shape), "data": dense.astype(float).tolist()},
        ],
    }


@pytest.mark.parametrize("num_candidates", [0, 1, 50])
def test_json_gives_the_scores_of_grpc(
    http: httpx.Client, ranker: RankerServer, request_of: Callable[..., Any], num_candidates: int
) -> None:
    asked = request_of(num_candidates)
    with RankerClient(ranker.address, timeout_s=20) as client:
        expected = client.rank(asked[0], asked[1], dense=asked[2])
    answer = http.post("/v2/models/ranker/infer", json=document_of(*asked)).raise_for_status().json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("r 1", "ranker", expected.version)
    assert answer["parameters"] == {"num_unknown_ids": expected.num_unknown_ids, "without_tables": False}
    for output, values in zip(answer["outputs"], (expected.ctr, expected.cvr), strict=True):
        assert output["shape"] == [num_candidates]
        np.testing.assert_array_equal(np.array(output["data"], np.float32), values)


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_own_client_gets_the_scores_of_grpc(
    address: str, ranker: RankerServer, request_of: Callable[..., Any], binary: bool
) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    utils = pytest.importorskip("tritonclient.utils")
    request_ids, candidate_ids, dense = request_of(50)
    with RankerClient(ranker.address, timeout_s=20) as client:
        expected = client.rank(request_ids, candidate_ids, dense=dense)
    arrays = {
        "user": ("INT64", np.array([request_ids["user"]])),
        "pin": ("INT64", candidate_ids["pin"]),
        "advertiser": ("BYTES", np.array([text.encode() for text in candidate_ids["advertiser"]], object)),
        "dense": ("FP32", dense),
    }
    inputs = []
    for name, (kind, values) in arrays.items():
        tensor = triton.InferInput(name, list(values.shape), kind)
        tensor.set_data_from_numpy(values, binary_data=binary)
        inputs.append(tensor)
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("ranker", expected.version)
        assert client.get_model_metadata("ranker")["versions"] == [expected.version]
        wanted = [triton.InferRequestedOutput("ctr", binary_data=binary)]
        result = client.infer("ranker", inputs, model_version=expected.version, outputs=wanted)
        np.testing.assert_array_equal(result.as_numpy("ctr"), expected.ctr)
        assert result.as_numpy("cvr") is None
        np.testing.assert_array_equal(client.infer("ranker", inputs).as_numpy("cvr"), expected.cvr)
        with pytest.raises(utils.InferenceServerException, match="not loaded"):
            client.infer("ranker", inputs, model_version="other")


def test_a_model_is_described(http: httpx.Client, release: Release) -> None:
    told = http.get("/v2/models/ranker").raise_for_status().json()
    assert told["parameters"] == {"version": release.version}
    assert {each["name"]: (each["datatype"], each["shape"]) for each in told["inputs"]} == {
        "user": ("INT64", [-1]),
        "pin": ("INT64", [-1]),
        "advertiser": ("BYTES", [-1]),
        "dense": ("FP32", [-1, 3]),
    }
    assert http.get(f"/v2/models/ranker/versions/{release.version}/ready").json()["ready"] is True
    assert http.get("/v2").json()["extensions"] == ["binary_tensor_data"]


def change(name: str, /, **fields: Any) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        next(each for each in document["inputs"] if each["name"] == name).update(fields)

    return apply


@pytest.mark.parametrize(
    ("apply", "told"),
    [
        (change("pin", datatype="FP64"), "datatype is 'FP64'"),
        (change("pin", datatype=["INT64"]), "datatype is ['INT64']"),
        (change("pin", data=[1.0] * 50), "expected whole numbers, got 1.0"),
        (change("pin", data=[True] * 50), "expected whole numbers, got True"),
        (change("pin", data=[1 << 63] * 50), "is no INT64"),
        (change("pin", data=[1] * 49), "49 values came, and its shape has 50"),
        (change("pin", shape=[49], data=[1] * 49), "49 values: expected 1, or one for each of 50"),
        (change("pin", shape=[-1]), "shape is [-1]"),
        (change("pin", shape=[1] * 65), "at most 4 sizes"),
        (change("pin", shape=[2**31 - 1] * 100_000), "at most 4 sizes"),
        (change("pin", shape=[0, 2**31 - 1, 2**31 - 1, 2**31 - 1], data=[]), "no array has the shape"),
        (change("pin", datatype="FP32"), "ids are integers or BYTES"),
        (change("advertiser", data=[b"x".decode()] * 49 + [3]), "expected strings, got 3"),
        (change("dense", data=[float("nan")] * 150), "finite"),
        (change("dense", data=[1e300] * 150), "finite"),
        (change("dense", data=["1"] * 150), "expected numbers, got '1'"),
        (change("dense", shape=[150]), "expected FP32 [candidates, features]"),
        (change("user", name="usr"), "usr"),
        (lambda document: document["inputs"].append(document["inputs"][0]), "stands there twice"),
        (lambda document: document["inputs"].append(3), "expected objects with a name"),
        (lambda document: document.update(id=3), "id is 3"),
        (lambda document: document.update(outputs=[{"name": "click"}]), "there is no output 'click'"),
        (lambda document: document.update(inputs={}), "a list of inputs"),
        (lambda document: document.update(parameters=[1]), "parameters is [1]"),
    ],
)
def test_what_is_wrong_is_told(
    http: httpx.Client, request_of: Callable[..., Any], apply: Callable[[dict[str, Any]], None], told: str
) -> None:
    document = document_of(*request_of(50))
    apply(document)
    answer = http.post("/v2/models/ranker/infer", content=json.dumps(document))
    assert answer.status_code == 400
    assert told in answer.json()["error"]


def test_what_is_not_there(http: httpx.Client, request_of: Callable[..., Any]) -> None:
    document = document_of(*request_of(5))
    for path in ("/v2/models/other/infer", "/v2/models/ranker/versions/other/infer"):
        answer = http.post(path, json=document)
        assert answer.status_code == 404
        assert "error" in answer.json()
    assert http.get("/v2/models/other/ready").status_code == 404
    assert http.get("/v2/models/ranker/infer").status_code == 405
    for body in (b"", b"[", b"[" * 100_000, b"\xff", b"{}"):
        assert http.post("/v2/models/ranker/infer", content=body).status_code == 400


def test_bodies_are_bounded(ranker: RankerServer, request_of: Callable[..., Any]) -> None:
    with (
        Running(HttpConfig(ranker=ranker.address, max_body_bytes=1000, body_timeout_s=0.2)) as address,
        connect(address) as client,
    ):
        assert client.post("/v2/models/ranker/infer", json=document_of(*request_of(50))).status_code == 413

        def drip() -> Iterator[bytes]:
            yield b"{"
            time.sleep(1)

        assert "within 0.2 seconds" in client.post("/v2/models/ranker/infer", content=drip()).json()["error"]
        assert client.post("/v2/models/ranker/infer", content=b"", headers={"content-encoding": "gzip"}).status_code == 400


def test_a_token_is_asked_for_and_read_again(ranker: RankerServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first")
    with (
        Running(HttpConfig(ranker=ranker.address, token_file=tmp_path / "token", timeout_s=20)) as address,
        connect(address) as client,
    ):

        def status(path: str, token: str) -> int:
            return client.get(path, headers={"authorization": f"Bearer {token}".encode("latin-1")}).status_code

        assert client.get("/v2/health/live").status_code == 200  # a probe has no token
        assert client.get("/v2/health/ready").status_code == 401
        assert status("/v2/health/ready", "fïrst") == 401
        assert status("/v2/health/ready", "first") == 200
        (tmp_path / "token").write_text("second")
        time.sleep(1.1)
        assert status("/v2/health/ready", "first") == 401
        assert status("/v2/health/ready", "second") == 200


def test_a_ranker_that_is_not_there_is_told(request_of: Callable[..., Any]) -> None:
    with Running(HttpConfig(ranker="127.0.0.1:1")) as address, connect(address) as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").status_code == 503
        answer = client.post("/v2/models/ranker/infer", json=document_of(*request_of(5)))
        assert answer.status_code in {503, 504}
        assert "127.0.0.1:1" in answer.json()["error"]


def test_lists_and_sequences_are_told_by_their_names() -> None:
    inputs = [
        {"name": "user", "datatype": "BYTES", "shape": [1], "data": ["ann"]},
        {"name": "interests", "datatype": "INT64", "shape": [2], "data": [7, 9]},
        {"name": "interests.lengths", "datatype": "UINT32", "shape": [1], "data": [2]},
        {"name": "pin", "datatype": "INT64", "shape": [3], "data": [1, 2, 3]},
        {"name": "tags", "datatype": "BYTES", "shape": [2], "data": ["red", "new"]},
        {"name": "tags.lengths", "datatype": "UINT32", "shape": [3], "data": [1, 0, 1]},
        {"name": "sequence.recent", "datatype": "INT64", "shape": [4], "data": [5, 6, 7, 8]},
    ]
    arguments = as_arguments(read_inference(json.dumps({"inputs": inputs}).encode(), None))
    ours = pack_rank(
        {"user": "ann", "interests": [7, 9]},
        {"pin": [1, 2, 3], "tags": [["red"], [], ["new"]]},
        np.empty((3, 0)),
        sequences={"recent": [5, 6, 7, 8]},
        version="",
        request_id="",
    )
    assert pack_rank(**arguments, version="", request_id="") == ours


def test_lengths_must_fit() -> None:
    for lengths, told in (([1, 2], "has 2 ids, and its lengths name 3"), ([3, -1], "is no UINT32")):
        inputs = [
            {"name": "tags", "datatype": "INT64", "shape": [2], "data": [1, 2]},
            {"name": "tags.lengths", "datatype": "UINT32", "shape": [2], "data": lengths},
        ]
        with pytest.raises(InvalidRequestError, match=told):
            as_arguments(read_inference(json.dumps({"inputs": inputs}).encode(), None))
    inputs[1] |= {"datatype": "BYTES", "data": ["1", "1"]}
    with pytest.raises(InvalidRequestError, match="no list of whole numbers"):
        as_arguments(read_inference(json.dumps({"inputs": inputs}).encode(), None))
    lonely = [{"name": "tags.lengths", "datatype": "UINT32", "shape": [1], "data": [1]}]
    with pytest.raises(InvalidRequestError, match="without 'tags'"):
        as_arguments(read_inference(json.dumps({"inputs": lonely}).encode(), None))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
_INPUT = st.fixed_dictionaries(
    {"name": st.sampled_from(["user", "pin", "dense", "pin.lengths", "sequence.a"]) | _VALUES},
    optional={
        "datatype": st.sampled_from(["INT64", "INT32", "UINT32", "BYTES", "FP32", "BOOL"]) | _VALUES,
        "shape": st.lists(st.integers(0, 3), max_size=3) | _VALUES,
        "data": st.lists(st.integers(-3, 3), max_size=4) | _VALUES,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 9) | _VALUES}) | _VALUES,
    },
)
_DOCUMENT = st.fixed_dictionaries(
    {"inputs": st.lists(_INPUT, max_size=4) | _VALUES}, optional={"id": _VALUES, "outputs": _VALUES, "parameters": _VALUES}
)


@given(document=_DOCUMENT, tail=st.binary(max_size=20), length=st.none() | st.text(max_size=3) | st.just("fits"))
def test_any_document_is_read_or_refused(document: dict[str, Any], tail: bytes, length: str | None) -> None:
    text = json.dumps(document).encode()
    with contextlib.suppress(InvalidRequestError):  # the one refusal there is
        as_arguments(read_inference(text + tail, str(len(text)) if length == "fits" else length))


def test_an_application_can_be_mounted(ranker: RankerServer) -> None:
    """Without a lifespan of its own, as within another application."""
    app = make_app(HttpConfig(ranker=ranker.address, timeout_s=20))

    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mounted") as client:
            return (await client.get("/v2/health/ready")).status_code

    assert asyncio.run(ask()) == 200


def test_binary_header_is_the_protocols() -> None:
    assert BINARY_HEADER == "inference-header-content-length"
