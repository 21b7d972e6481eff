"""What a request's tensors mean to a ranker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from multifacet.serving.errors import InvalidRequestError, VersionNotLoadedError

if TYPE_CHECKING:
    from multifacet.serving.http.tensors import Inference
    from multifacet.serving.protocol import ranker_pb2

__all__ = ["LENGTHS", "SEQUENCE", "as_arguments", "find_version"]

#: End of the name of an input that says how many ids each list of a feature has.
LENGTHS: Final = ".lengths"
#: Beginning of the name of an input that is a sequence.
SEQUENCE: Final = "sequence."


def find_version(description: ranker_pb2.RankerDescription, version: str) -> ranker_pb2.RankerVersion:
    """Gives what a ranker tells of a version.

    Raises:
        VersionNotLoadedError: It is not loaded.
    """
    loaded = [each.version for each in description.versions]
    found: ranker_pb2.RankerVersion | None = next((each for each in description.versions if each.version == version), None)
    if found is not None:
        return found
    raise VersionNotLoadedError(f"version {version[:200]!r} is not loaded; loaded are {', '.join(loaded) or 'none'}", loaded)


def as_arguments(inference: Inference) -> dict[str, Any]:
    """Gives a request's tensors as arguments of `RankerClient.rank`: one id is the request's, one a candidate the candidates'.

    Raises:
        InvalidRequestError: They do not fit together; says which.
    """
    inputs = dict(inference.inputs)
    dense = inputs.pop("dense", None)
    if dense is not None and (dense.ndim != 2 or dense.dtype != np.float32):
        raise InvalidRequestError(f"input 'dense' is {dense.dtype} {list(dense.shape)}: expected FP32 [candidates, features]")
    sequences = {name.removeprefix(SEQUENCE): inputs.pop(name) for name in list(inputs) if name.startswith(SEQUENCE)}
    lengths = {name.removesuffix(LENGTHS): inputs.pop(name) for name in list(inputs) if name.endswith(LENGTHS)}
    for name, values in (*inputs.items(), *sequences.items(), *lengths.items()):
        if values.dtype == np.float32:
            raise InvalidRequestError(f"input {name[:200]!r} is FP32: ids are integers or BYTES")
        if values.ndim > 1:
            raise InvalidRequestError(f"input {name[:200]!r} has shape {list(values.shape)}: expected one dimension")
    strange = sorted(set(lengths) - set(inputs))
    if strange:
        raise InvalidRequestError(f"input {strange[0][:200] + LENGTHS!r} is given without {strange[0][:200]!r}")
    given: dict[str, Any] = {
        name: _lists(name, values, lengths[name]) if name in lengths else values for name, values in inputs.items()
    }
    count = len(dense) if dense is not None else max((_length(values) for values in given.values()), default=0)
    if dense is None:
        dense = np.empty((count, 0), np.float32)
    of_request: dict[str, Any] = {}
    of_candidates: dict[str, Any] = {}
    for name, values in given.items():
        if _length(values) == count and not _is_one(values):
            of_candidates[name] = values
        elif _length(values) == 1:
            of_request[name] = values[0] if isinstance(values, list) else values.item()
        else:
            raise InvalidRequestError(
                f"input {name[:200]!r} has {_length(values)} values: expected 1, or one for each of {count} candidates"
            )
    return {"request_ids": of_request, "candidate_ids": of_candidates, "dense": dense, "sequences": sequences}


def _lists(name: str, values: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    if lengths.dtype != np.int64:
        raise InvalidRequestError(f"input {name[:200] + LENGTHS!r} is no list of whole numbers")
    ends = np.cumsum(lengths.ravel())
    if np.any(lengths < 0) or int(lengths.sum()) != values.size:
        raise InvalidRequestError(f"input {name[:200]!r} has {values.size} ids, and its lengths name {int(lengths.sum())}")
    return np.split(values.ravel(), ends[:-1]) if ends.size else []


def _length(values: Any) -> int:
    return 1 if _is_one(values) else len(values)


def _is_one(values: Any) -> bool:
    """Whether it is a value without a dimension."""
    return isinstance(values, np.ndarray) and values.ndim == 0
