"""External ids between arrays and the wire."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from multifacet.serving.errors import InvalidRequestError
from multifacet.serving.protocol import ids_pb2, lookup_pb2, ranker_pb2

_INT64 = np.dtype("<i8")
_TABLES_TAG, _ROWS_TAG = b"\x12", b"\x12"
"""Of LookupAnswer.tables and of TableRows.rows: each is field 2, of a length that follows."""
_MAX_NAMES_TOLD = 16
_MAX_NAME_TOLD = 64
IdArray = npt.NDArray[np.int64] | npt.NDArray[np.object_]
"""External ids of one feature: int64 [n], or Python strings [n] (numpy's own strings drop trailing zeros)."""


def as_ids(feature: str, ids: npt.ArrayLike) -> IdArray:
    """Ids of one feature as an array of one of the two types.

    Args:
        feature: Name of the id feature.
        ids: [n] integers or strings.

    Returns:
        int64 [n], or object [n] of str; no ids are int64.

    Raises:
        InvalidRequestError: Not one-dimensional, neither integers nor strings, or an integer beyond int64.
    """
    # numpy's own strings drop trailing zeros: strings stay Python's.
    array = np.array(ids, dtype=np.object_) if isinstance(ids, list | tuple) else np.asarray(ids)
    if array.dtype == np.object_ and array.size and not isinstance(array.flat[0], str):
        try:
            array = np.asarray(ids)
        except ValueError as error:
            raise InvalidRequestError(
                f"ids of feature {feature!r} are some lists and some not: expected integers, strings, or a list for each"
            ) from error
    if array.ndim != 1:
        raise InvalidRequestError(f"ids of feature {feature!r} have shape {array.shape}: expected [n]")
    if array.size == 0:
        return np.empty(0, _INT64)
    if array.dtype.kind in "iu":
        if array.dtype.kind == "u" and int(array.max()) > np.iinfo(np.int64).max:
            raise InvalidRequestError(f"ids of feature {feature!r} go beyond int64: {int(array.max())}")
        return array.astype(_INT64, copy=False)
    strings = array.astype(np.object_, copy=False)
    if not all(isinstance(value, str) for value in strings.tolist()):
        raise InvalidRequestError(f"ids of feature {feature!r} have dtype {array.dtype}: expected integers or strings")
    return strings


def pack_answer(answer: lookup_pb2.LookupAnswer, tables: Iterable[tuple[lookup_pb2.TableRows, memoryview]]) -> bytes:
    """A lookup's answer as the bytes of its message.

    protobuf would copy the rows into the table's message, that into the answer's, and that into bytes.

    Args:
        answer: All but the tables.
        tables: Of each table its message without rows, and its rows.

    Example:
        >>> table = lookup_pb2.TableRows(table="pin", row_bytes=2)
        >>> packed = pack_answer(lookup_pb2.LookupAnswer(version="v"), [(table, memoryview(b"abcd"))])
        >>> lookup_pb2.LookupAnswer.FromString(packed).tables[0].rows
        b'abcd'
    """
    parts: list[bytes | memoryview] = [answer.SerializeToString()]
    for message, rows in tables:
        head = message.SerializeToString() + _ROWS_TAG + _varint(len(rows))
        parts += (_TABLES_TAG + _varint(len(head) + len(rows)) + head, rows)
    return b"".join(parts)


def pack_ids(feature: str, ids: npt.ArrayLike) -> ids_pb2.FeatureIds:
    """Ids of one feature as a message.

    Args:
        feature: Name of the id feature.
        ids: [n] integers or strings.

    Raises:
        InvalidRequestError: As `as_ids`.
    """
    array = as_ids(feature, ids)
    if array.dtype == np.object_:
        return ids_pb2.FeatureIds(feature=feature, string_ids=ids_pb2.StringIds(values=array.tolist()))
    return ids_pb2.FeatureIds(feature=feature, int64_ids=array.tobytes())


def pack_lookup(
    version: str, ids: Mapping[str, npt.ArrayLike], request_id: str = "", traceparent: str = ""
) -> list[bytes | memoryview]:
    """A ``LookupRequest`` in its wire form, in parts to be sent one after the other: int64 ids are not copied.

    Setting a bytes field, adding the message to another and serialising that one copy the ids three times. A field's wire
    form is its tag, its length and its content, so that the ids can stay where they are.

    Args:
        version: Version of the release.
        ids: External ids [n] by feature.
        request_id: For the server's log.
        traceparent: Of the trace that it belongs to, if any.

    Raises:
        InvalidRequestError: As `pack_ids`.

    Example:
        >>> parts = pack_lookup("v1", {"pin": np.array([1, 2])})
        >>> lookup_pb2.LookupRequest.FromString(b"".join(parts)).features[0].feature
        'pin'
    """
    head = lookup_pb2.LookupRequest(version=version, request_id=request_id, traceparent=traceparent).SerializeToString()
    parts: list[bytes | memoryview] = []
    for feature, values in ids.items():
        if isinstance(values, np.ndarray) and values.dtype == _INT64 and values.ndim == 1 and values.size:
            name = feature.encode()
            packed = np.ascontiguousarray(values).data.cast("B")
            start = b"\x0a%b%b\x12%b" % (_varint(len(name)), name, _varint(len(packed)))
            parts += (b"%b\x12%b%b" % (head, _varint(len(start) + len(packed)), start), packed)
        else:
            content = pack_ids(feature, values).SerializeToString()
            parts.append(b"%b\x12%b%b" % (head, _varint(len(content)), content))
        head = b""
    return parts or [head]


def pack_rank(
    request_ids: Mapping[str, int | str | npt.ArrayLike],
    candidate_ids: Mapping[str, npt.ArrayLike],
    dense: npt.ArrayLike,
    *,
    sequences: Mapping[str, npt.ArrayLike] | None = None,
    version: str,
    request_id: str,
) -> ranker_pb2.RankRequest:
    """A ranking request; see `serving.client.grpc_clients.RankerClient.rank`.

    Raises:
        InvalidRequestError: As `pack_ids`, or `dense` is not two-dimensional.
    """
    features = np.asarray(dense, dtype="<f4")
    if features.ndim != 2:
        raise InvalidRequestError(f"dense has shape {features.shape}: expected [num_candidates, num_dense]")
    request = ranker_pb2.RankRequest(
        version=version,
        request_id=request_id,
        num_candidates=len(features),
        dense=features.tobytes(),
        sequences=[pack_ids(feature, values) for feature, values in (sequences or {}).items()],
    )
    for feature, value in request_ids.items():
        if _is_list(value):
            request.request_lists.append(pack_id_lists(feature, [value]))
        else:
            one: Any = [value]
            request.request_features.append(pack_ids(feature, one))
    for feature, values in candidate_ids.items():
        if _is_list(values) and _is_list(next(iter(values), None)):
            request.candidate_lists.append(pack_id_lists(feature, values))
        else:
            request.candidate_features.append(pack_ids(feature, values))
    return request


def pack_id_lists(feature: str, lists: Iterable[Any]) -> ranker_pb2.FeatureIdLists:
    """Lists of ids of one feature as a message.

    Args:
        feature: Name of the id feature.
        lists: Lists of integers or of strings.

    Raises:
        InvalidRequestError: One is no list, is null, or holds something else than ids, or their types differ; says which.

    Example:
        >>> message = pack_id_lists("tag", [["red", "new"], [], ["red"]])
        >>> list(message.ids.string_ids.values), list(message.lengths)
        (['red', 'new', 'red'], [2, 0, 1])
    """
    arrays = []
    for place, ids in enumerate(lists):
        if not _is_list(ids):
            raise InvalidRequestError(
                f"feature {feature!r} has lists of ids, but number {place} is {ids!r}: expected a list; [] if there are none"
            )
        arrays.append(as_ids(feature, ids.as_py() if hasattr(ids, "as_py") else ids))
    kinds = {array.dtype for array in arrays if array.size}
    if len(kinds) > 1:
        raise InvalidRequestError(f"lists of feature {feature!r} hold integers and strings: expected one type")
    filled = [array for array in arrays if array.size]
    flat: npt.ArrayLike = np.concatenate(filled) if filled else np.empty(0, _INT64)
    return ranker_pb2.FeatureIdLists(ids=pack_ids(feature, flat), lengths=[array.size for array in arrays])


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether a value is several ids, such as a list, an array or an Arrow list; a string and a number are one id."""
    if isinstance(value, str | bytes | int) or value is None:
        return False
    return hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0


def _varint(number: int) -> bytes:
    r"""A length as protobuf writes it.

    Example:
        >>> _varint(5), _varint(300)
        (b'\x05', b'\xac\x02')
    """
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


def unpack_ids(message: ids_pb2.FeatureIds) -> IdArray:
    """Ids of one feature from a message.

    Returns:
        int64 [n], or object [n] of str.

    Raises:
        InvalidRequestError: The packed block is not a whole number of ids.
    """
    kind = message.WhichOneof("ids")
    if kind == "string_ids":
        return np.array(message.string_ids.values, dtype=np.object_)
    packed = message.int64_ids
    if len(packed) % 8:
        raise InvalidRequestError(
            f"int64_ids of feature {message.feature!r} has {len(packed)} bytes: expected 8 an id, little-endian"
        )
    return np.frombuffer(packed, dtype="<i8")


def count_ids(message: ids_pb2.FeatureIds) -> int:
    """Number of ids in a message, without unpacking them."""
    if message.WhichOneof("ids") == "string_ids":
        return len(message.string_ids.values)
    return len(message.int64_ids) // 8


def check_id_type(feature: str, ids: IdArray, id_type: str, where: str) -> None:
    """Refuse ids of another type than the id map has.

    Args:
        feature: Name of the id feature.
        ids: The unpacked ids; an empty array fits every type.
        id_type: ``int64`` or ``string``.
        where: What asks for this type, for the message.

    Raises:
        InvalidRequestError: The types differ.
    """
    given = "int64" if ids.dtype.kind == "i" else "string"
    if ids.size and given != id_type:
        raise InvalidRequestError(f"ids of feature {feature!r} are {given}, but {where} has {id_type} ids")


def check_features(
    given: Sequence[str], expected: Collection[str], where: str, *, every: bool, what: str = "id features"
) -> None:
    """Refuse unknown, repeated and (with ``every``) missing features; ``what`` is what messages call them.

    What it costs is bounded by `expected`: a request of thousands of names is refused by their number.

    Raises:
        InvalidRequestError: With both lists in its message, of each the first names.
    """
    if (
        len(given) <= len(expected)
        and len(set(given)) == len(given)
        and set(expected).issuperset(given)
        and (not every or len(given) == len(expected))
    ):
        return
    has = f"{where} has {_first_names(sorted(expected))}"
    if len(given) > len(expected) + _MAX_NAMES_TOLD:
        raise InvalidRequestError(f"{what}: {len(given)} are named; {has}")
    repeated = sorted(name for name, times in Counter(given).items() if times > 1)
    unknown = sorted(set(given) - set(expected))
    missing = sorted(set(expected) - set(given)) if every else []
    faults: list[Any] = [
        *([f"unknown {_first_names(unknown)}"] if unknown else []),
        *([f"repeated {_first_names(repeated)}"] if repeated else []),
        *([f"missing {_first_names(missing)}"] if missing else []),
    ]
    if faults:
        raise InvalidRequestError(f"{what}: {'; '.join(faults)}; {has}")


def _first_names(names: Sequence[str]) -> str:
    """Names for a message, which must stay short whatever was sent."""
    told = [name if len(name) <= _MAX_NAME_TOLD else f"{name[:_MAX_NAME_TOLD]}..." for name in names[:_MAX_NAMES_TOLD]]
    more = f" and {len(names) - len(told)} more" if len(names) > len(told) else ""
    return f"{told}{more}"
