"""The ids of one ranking request: read, checked, and each once, as the lookup servers are asked for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from multifacet.serving.errors import InvalidRequestError
from multifacet.serving.packing import IdArray, check_features, check_id_type, count_ids, unpack_ids

if TYPE_CHECKING:
    from multifacet.serving.manifest import ReleaseManifest
    from multifacet.serving.protocol import ids_pb2, ranker_pb2

_NOTHING = np.empty(0, np.intp)


class GivenIds(NamedTuple):
    """A request's ids as they came, checked.

    Attributes:
        features: By feature, one id or one a candidate.
        sequence: The ids that the model reads of the user's sequence, the latest first; empty if it reads none.
        sequence_feature: The feature that they are looked up as; empty if the model reads none.
    """

    features: Mapping[str, IdArray]
    sequence: IdArray
    sequence_feature: str = ""


class RequestIds(NamedTuple):
    """A request's ids, each once.

    Attributes:
        distinct: By feature, its ids, each once: an id has one row, whatever the number of candidates that have it, and whether
            it is a candidate's or the sequence's where both read one table.
        positions: By feature, where each candidate's id is among them, [num_candidates].
        sequence: Where each id of the sequence is among those of its feature, the latest first, [n].
    """

    distinct: Mapping[str, IdArray]
    positions: Mapping[str, npt.NDArray[np.intp]]
    sequence: npt.NDArray[np.intp] = _NOTHING


def read_ids(
    request: ranker_pb2.RankRequest, manifest: ReleaseManifest, where: str, *, max_candidates: int, max_sequence_ids: int
) -> GivenIds:
    """Read the ids of a request for a model.

    Args:
        request: The request.
        manifest: The model's.
        where: The model, for messages.
        max_candidates: Most candidates.
        max_sequence_ids: Most ids of a sequence, whether the model reads it or not.

    Raises:
        InvalidRequestError: Features are missing, unknown or repeated, or ids are of another type or number.
    """
    if request.num_candidates > max_candidates:
        raise InvalidRequestError(
            f"{request.num_candidates} candidates in one request: at most {max_candidates} are accepted; split it"
        )
    messages = [*request.request_features, *request.candidate_features]
    id_types = manifest.id_features
    check_features([message.feature for message in messages], list(id_types), where, every=True)
    lengths = [1] * len(request.request_features) + [request.num_candidates] * len(request.candidate_features)
    features = {
        message.feature: _read_feature(message, id_types[message.feature], length, where)
        for message, length in zip(messages, lengths, strict=True)
    }
    for message in request.sequences:
        if (num_ids := count_ids(message)) > max_sequence_ids:
            raise InvalidRequestError(
                f"sequence {message.feature!r} has {num_ids} ids: at most {max_sequence_ids} are accepted; send the latest"
            )
    sequence = manifest.sequence
    if sequence is None:
        return GivenIds(features, np.empty(0, np.int64))
    names = [message.feature for message in request.sequences]
    check_features(names, [sequence.feature], where, every=True, what="sequences (send [] for a user without a history)")
    ids = unpack_ids(request.sequences[0])
    feature = manifest.history_tables[0].feature
    check_id_type(sequence.feature, ids, manifest.id_types[feature], where)
    return GivenIds(features, ids[: sequence.length], feature)


def distinct_ids(given: GivenIds, num_candidates: int) -> RequestIds:
    """Take each id once.

    Args:
        given: The ids.
        num_candidates: The number of candidates, 1 or more.

    Example:
        >>> pins, recent = np.array([7, 5, 7]), np.array([9, 5])
        >>> ids = distinct_ids(GivenIds({"pin": pins}, recent, "pin"), 3)
        >>> ids.distinct["pin"].tolist(), ids.positions["pin"].tolist(), ids.sequence.tolist()
        ([5, 7, 9], [1, 0, 1], [2, 0])
    """
    distinct: dict[str, IdArray] = {}
    positions: dict[str, npt.NDArray[np.intp]] = {}
    sequence = _NOTHING
    wanted = dict(given.features)
    has_sequence = len(given.sequence) > 0  # a feature without ids is not asked for
    if has_sequence and given.sequence_feature in wanted:
        wanted[given.sequence_feature] = cast("IdArray", np.concatenate([wanted[given.sequence_feature], given.sequence]))
    elif has_sequence:
        wanted[given.sequence_feature] = given.sequence
    for feature, ids in wanted.items():
        values, inverse = np.unique(ids, return_inverse=True)
        distinct[feature] = cast("IdArray", values)
        places = inverse.astype(np.intp, copy=False)
        if has_sequence and feature == given.sequence_feature:
            places, sequence = np.split(places, [len(places) - len(given.sequence)])
        if feature in given.features:
            positions[feature] = np.broadcast_to(places, num_candidates)
    return RequestIds(distinct, positions, sequence)


def _read_feature(message: ids_pb2.FeatureIds, id_type: str, length: int, where: str) -> IdArray:
    ids = unpack_ids(message)
    if len(ids) != length:
        raise InvalidRequestError(
            f"feature {message.feature!r} has {count_ids(message)} ids: expected {length}, "
            "one of a request feature and num_candidates of a candidate feature"
        )
    check_id_type(message.feature, ids, id_type, where)
    return ids
