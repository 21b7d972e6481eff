"""Tensors of the Open Inference Protocol, in JSON or in its binary extension."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from multifacet.serving.errors import InvalidRequestError

__all__ = ["BINARY_HEADER", "Inference", "read_inference", "write_outputs"]

#: Header that says how long the JSON in front of binary tensors is.
BINARY_HEADER: Final = "inference-header-content-length"
_INTEGERS: Final[dict[str, np.dtype[Any]]] = {"INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"), "UINT32": np.dtype("<u4")}
_FLOAT: Final = np.dtype("<f4")
_MAX_INPUTS: Final = 1000
_MAX_DIMENSIONS: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """One request for inference.

    Attributes:
        id: The caller's name of it, or "".
        inputs: Name -> values: int64 or str objects [n] of ids, float32 of features, in the shape that was said.
        binary_outputs: Whether an output that is not asked for by name is wanted in binary.
        outputs: Output's name -> whether it is wanted in binary; empty where none is named, which asks for all.
    """

    id: str
    inputs: Mapping[str, npt.NDArray[Any]]
    binary_outputs: bool
    outputs: Mapping[str, bool]


def read_inference(body: bytes, header_length: str | None) -> Inference:
    """Reads the body of a request.

    Args:
        body: The body.
        header_length: Value of `BINARY_HEADER`; None where there is none.

    Raises:
        InvalidRequestError: It is no such request, or a value is not exactly one of its datatype; says where.
    """
    document, at = _read_document(body, header_length)
    name = document.get("id", "")
    if not isinstance(name, str):
        raise InvalidRequestError(f"id is {_brief(name)}: expected a string")
    if len(document["inputs"]) > _MAX_INPUTS:
        raise InvalidRequestError(f"there are {len(document['inputs'])} inputs: expected at most {_MAX_INPUTS}")
    inputs: dict[str, npt.NDArray[Any]] = {}
    for described in document["inputs"]:
        tensor, at = _read_tensor(described, body, at)
        if described["name"] in inputs:
            raise InvalidRequestError(f"input {described['name']!r} stands there twice")
        inputs[described["name"]] = tensor
    if at != len(body):
        raise InvalidRequestError(f"{len(body) - at} bytes behind the inputs belong to none of them")
    parameters = _parameters(document, "the request")
    outputs = _read_outputs(document)
    return Inference(id=name, inputs=inputs, binary_outputs=bool(parameters.get("binary_data_output", False)), outputs=outputs)


def _read_document(body: bytes, header_length: str | None) -> tuple[dict[str, Any], int]:
    """The request's JSON, and where the binary tensors begin."""
    length = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or int(header_length) > len(body):
            raise InvalidRequestError(f"{BINARY_HEADER} is {header_length[:20]!r}: expected the JSON's length, up to {length}")
        length = int(header_length)
    try:
        document = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise InvalidRequestError("expected a JSON object with a list of inputs")
    return document, length


def _read_outputs(document: Mapping[str, Any]) -> dict[str, bool]:
    outputs = {}
    named = document.get("outputs") or []
    for output in named if isinstance(named, list) else [named]:
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise InvalidRequestError(f"outputs names {_brief(output)}: expected objects with a name")
        outputs[output["name"]] = bool(_parameters(output, output["name"]).get("binary_data", False))
    return outputs


def write_outputs(
    document: Mapping[str, Any], outputs: Mapping[str, npt.NDArray[np.float32]], inference: Inference
) -> tuple[bytes, int | None]:
    """Writes the body of an answer.

    Args:
        document: All of its JSON but the outputs.
        outputs: Name -> float32 [n].
        inference: The request, which says how they are wanted.

    Returns:
        The body, and the length of the JSON in front of binary tensors; None if there are none.
    """
    told, raw = [], []
    for name, values in outputs.items():
        output: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": [len(values)]}
        if inference.outputs.get(name, inference.binary_outputs):
            data = values.astype(_FLOAT, copy=False).tobytes()
            output["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        else:
            output["data"] = values.astype(np.float64).tolist()
        told.append(output)
    text = json.dumps({**document, "outputs": told}, allow_nan=False).encode()
    return b"".join([text, *raw]), len(text) if raw else None


def _read_tensor(described: Any, body: bytes, at: int) -> tuple[npt.NDArray[Any], int]:
    """An input, and where the next one's bytes begin."""
    if not isinstance(described, dict) or not isinstance(described.get("name"), str):
        raise InvalidRequestError(f"inputs holds {_brief(described)}: expected objects with a name, a shape and a datatype")
    name, kind, shape = described["name"], described.get("datatype"), described.get("shape")
    where = f"input {name[:200]!r}"
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_DIMENSIONS
        or not all(type(size) is int and 0 <= size < 1 << 31 for size in shape)
    ):
        raise InvalidRequestError(f"{where}: shape is {_brief(shape)}: expected a list of at most {_MAX_DIMENSIONS} sizes")
    count = math.prod(shape)
    size = _parameters(described, where).get("binary_data_size")
    if size is not None:
        if type(size) is not int or size < 0 or at + size > len(body):
            raise InvalidRequestError(
                f"{where}: binary_data_size is {_brief(size)}, and {len(body) - at} bytes are left of the body"
            )
        values = _from_bytes(body[at : at + size], kind, where)
        at += size
    else:
        values = _from_json(described.get("data"), kind, count, where)
    if values.size != count:
        raise InvalidRequestError(f"{where}: {values.size} values came, and shape {shape} has {count}")
    try:
        return values.reshape(shape), at
    except ValueError as error:  # no values, in sizes whose product no array has
        raise InvalidRequestError(f"{where}: no array has the shape {shape}") from error


def _from_bytes(data: bytes, kind: Any, where: str) -> npt.NDArray[Any]:
    if kind == "BYTES":
        return np.array(_texts(data, where), dtype=object)
    known: dict[Any, np.dtype[Any]] = {"FP32": _FLOAT, **_INTEGERS}
    dtype = known.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise InvalidRequestError(_unknown_datatype(kind, where))
    if len(data) % dtype.itemsize:
        raise InvalidRequestError(f"{where}: {len(data)} bytes are no whole number of {kind}")
    values = np.frombuffer(data, dtype)
    return values if kind == "FP32" else values.astype(np.int64)


def _texts(data: bytes, where: str) -> list[str]:
    texts: list[str] = []
    at = 0
    while at < len(data):
        end = at + 4
        length = struct.unpack_from("<I", data, at)[0] if end <= len(data) else len(data)
        if end + length > len(data):
            raise InvalidRequestError(f"{where}: its bytes end within value {len(texts)}")
        texts.append(_text(data[end : end + length], where, len(texts)))
        at = end + length
    return texts


def _text(data: bytes, where: str, place: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{where}: value {place} is not UTF-8") from error


def _from_json(data: Any, kind: Any, count: int, where: str) -> npt.NDArray[Any]:
    flat = _flatten(data, where)
    if len(flat) != count:
        raise InvalidRequestError(f"{where}: {len(flat)} values came, and its shape has {count}")
    if kind == "BYTES":
        return np.array(_checked(flat, (str,), "strings", where), dtype=object)
    if kind == "FP32":
        with np.errstate(over="ignore"):  # what is not finite is refused by the ranker
            return np.array([_as_float(value) for value in _checked(flat, (int, float), "numbers", where)], dtype=_FLOAT)
    if not isinstance(kind, str) or kind not in _INTEGERS:
        raise InvalidRequestError(_unknown_datatype(kind, where))
    limits: Any = np.iinfo(_INTEGERS[kind])
    for value in _checked(flat, (int,), "whole numbers", where):
        if not limits.min <= value <= limits.max:
            raise InvalidRequestError(f"{where}: {_brief(value)} is no {kind}")
    return np.array(flat, dtype=np.int64)


def _flatten(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidRequestError(f"{where}: data is {_brief(data)}: expected a list of values")
    flat: list[Any] = data
    while flat and isinstance(flat[0], list):
        if not all(isinstance(part, list) for part in flat):
            raise InvalidRequestError(f"{where}: data is nested unevenly")
        flat = [value for part in flat for value in part]
    return flat


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _checked(flat: Sequence[Any], kinds: tuple[type, ...], called: str, where: str) -> list[Any]:
    for value in flat:
        if type(value) not in kinds:  # true and false are no numbers
            raise InvalidRequestError(f"{where}: expected {called}, got {_brief(value)}")
    return list(flat)


def _parameters(described: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    parameters = described.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidRequestError(f"{where}: parameters is {_brief(parameters)}: expected an object")
    return parameters


def _unknown_datatype(kind: Any, where: str) -> str:
    return f"{where}: datatype is {_brief(kind)}: ids are {', '.join(_INTEGERS)} or BYTES, features FP32"


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
