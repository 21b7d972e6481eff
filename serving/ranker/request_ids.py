"""The ids of one ranking request: read, checked, and each once, as the lookup servers are asked for them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from multifacet.serving.errors import InvalidRequestError
from multifacet.serving.wire.packing import IdArray, check_features, check_id_type, count_ids, unpack_ids

if TYPE_CHECKING:
    from multifacet.serving.protocol import ids_pb2, ranker_pb2
    from multifacet.serving.release.manifest import ReleaseManifest

_NOTHING = np.empty(0, np.intp)


class GivenIds(NamedTuple):
    """A request's ids as they came, checked.

    Attributes:
        features: By feature, one id or one a candidate.
        sequence: The ids that the model reads of the user's sequence, the latest first; empty if it reads none.
        sequence_feature: The feature that they are looked up as; empty if the model reads none.
        lengths: Of features of several ids, how many ids each list has that the model reads, [1] or [num_candidates]; their ids
            are back to back in `features`.
    """

    features: Mapping[str, IdArray]
    sequence: IdArray
    sequence_feature: str = ""
    lengths: Mapping[str, npt.NDArray[np.intp]] = MappingProxyType({})


class RequestIds(NamedTuple):
    """A request's ids, each once.

    Attributes:
        num_candidates: The number of candidates.
        distinct: By feature, its ids, each once: an id has one row, whatever the number of candidates that have it, and whether
            it is a candidate's or the sequence's where both read one table.
        positions: By feature, where each candidate's id is among them, [num_candidates]; of a feature of several ids, where
            the ids of its lists are, back to back.
        sequence: Where each id of the sequence is among those of its feature, the latest first, [n].
        lengths: As in `GivenIds`.
    """

    num_candidates: int
    distinct: Mapping[str, IdArray]
    positions: Mapping[str, npt.NDArray[np.intp]]
    sequence: npt.NDArray[np.intp] = _NOTHING
    lengths: Mapping[str, npt.NDArray[np.intp]] = MappingProxyType({})


def read_ids(
    request: ranker_pb2.RankRequest, manifest: ReleaseManifest, where: str, *, max_candidates: int, max_sequence_ids: int
) -> GivenIds:
    """Read the ids of a request for a model.

    Args:
        request: The request.
        manifest: The model's.
        where: The model, for messages.
        max_candidates: Most candidates.
        max_sequence_ids: Most ids of a sequence, whether the model reads it or not, and of each list.

    Raises:
        InvalidRequestError: Features are missing, unknown or repeated, or ids are of another type or number.
    """
    if request.num_candidates > max_candidates:
        raise InvalidRequestError(
            f"{request.num_candidates} candidates in one request: at most {max_candidates} are accepted; split it"
        )
    given = [
        *((message, None, 1) for message in request.request_features),
        *((message, None, request.num_candidates) for message in request.candidate_features),
        *((lists.ids, lists.lengths, 1) for lists in request.request_lists),
        *((lists.ids, lists.lengths, request.num_candidates) for lists in request.candidate_lists),
    ]
    id_types, list_lengths = manifest.id_features, manifest.list_lengths
    check_features([message.feature for message, _, _ in given], list(id_types), where, every=True)
    features: dict[str, IdArray] = {}
    lengths: dict[str, npt.NDArray[np.intp]] = {}
    for message, list_sizes, number in given:
        name = message.feature
        if name not in list_lengths:
            if list_sizes is not None:
                raise InvalidRequestError(f"feature {name!r} came with lists of ids: {where} has one id of it")
            features[name] = _read_feature(message, id_types[name], number, where)
            continue
        if list_sizes is None and number:
            raise InvalidRequestError(
                f"feature {name!r} came with one id: {where} has lists of up to {list_lengths[name]} ids of it; "
                "send a list, of one id too, and [] if there are none"
            )
        sizes = np.array(list_sizes or (), np.intp)
        features[name], lengths[name] = _read_lists(
            message, sizes, id_types[name], list_lengths[name], number, max_sequence_ids, where
        )
    for message in request.sequences:
        if (num_ids := count_ids(message)) > max_sequence_ids:
            raise InvalidRequestError(
                f"sequence {message.feature!r} has {num_ids} ids: at most {max_sequence_ids} are accepted; send the latest"
            )
    sequence = manifest.sequence
    if sequence is None:
        return GivenIds(features, np.empty(0, np.int64), lengths=lengths)
    names = [message.feature for message in request.sequences]
    check_features(names, [sequence.feature], where, every=True, what="sequences (send [] for a user without a history)")
    ids = unpack_ids(request.sequences[0])
    feature = manifest.history_tables[0].feature
    check_id_type(sequence.feature, ids, manifest.id_types[feature], where)
    return GivenIds(features, ids[: sequence.length], feature, lengths)


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
        if not len(ids):  # empty lists alone
            positions[feature] = _NOTHING
            continue
        values, inverse = np.unique(ids, return_inverse=True)
        distinct[feature] = cast("IdArray", values)
        places = inverse.astype(np.intp, copy=False)
        if has_sequence and feature == given.sequence_feature:
            places, sequence = np.split(places, [len(places) - len(given.sequence)])
        if feature in given.features:
            positions[feature] = places if feature in given.lengths else np.broadcast_to(places, num_candidates)
    return RequestIds(num_candidates, distinct, positions, sequence, given.lengths)


def _read_feature(message: ids_pb2.FeatureIds, id_type: str, length: int, where: str) -> IdArray:
    ids = unpack_ids(message)
    if len(ids) != length:
        raise InvalidRequestError(
            f"feature {message.feature!r} has {count_ids(message)} ids: expected {length}, "
            "one of a request feature and num_candidates of a candidate feature"
        )
    check_id_type(message.feature, ids, id_type, where)
    return ids


def _read_lists(
    message: ids_pb2.FeatureIds,
    sizes: npt.NDArray[np.intp],
    id_type: str,
    list_length: int,
    num_lists: int,
    max_ids: int,
    where: str,
) -> tuple[IdArray, npt.NDArray[np.intp]]:
    """The ids of lists that a model reads, back to back, and how many each list has of them."""
    ids = unpack_ids(message)
    if len(sizes) != num_lists or int(sizes.sum()) != len(ids):
        raise InvalidRequestError(
            f"feature {message.feature!r} has {len(ids)} ids in {len(sizes)} lists of {int(sizes.sum())} together: expected "
            f"{num_lists} lists, one of a request feature and num_candidates of a candidate feature"
        )
    if len(sizes) and (longest := int(sizes.max())) > max_ids:
        raise InvalidRequestError(
            f"a list of feature {message.feature!r} has {longest} ids: at most {max_ids} are accepted; the first "
            f"{list_length} are read"
        )
    check_id_type(message.feature, ids, id_type, where)
    read = np.minimum(sizes, list_length)
    if len(ids) > read.sum():
        places = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        ids = ids[places < list_length]
    return ids, read
