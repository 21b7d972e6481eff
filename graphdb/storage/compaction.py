"""Merging what came since the last compaction, and writing the file anew where it holds what was forgotten."""

from __future__ import annotations

import logging

from multifacet.graphdb.storage import retention
from multifacet.graphdb.storage.session import Session

logger = logging.getLogger(__name__)


def compact(session: Session) -> dict[str, int]:
    """Compact each relation; see `GraphStore.compact`.

    Returns:
        Relation -> edges merged.
    """
    session.sweep()
    merged = {}
    for relation in session.schema.relations:
        with session.transaction(f"compacting {relation}") as cursor:
            merged[relation.name] = session.storage.base(cursor, relation).compact()
    with session.reading() as cursor:
        holds_forgotten = retention.holds_forgotten(cursor)
    if holds_forgotten:
        session.sweep()
        if session.rewrite():
            with session.transaction("compacting") as cursor:
                retention.mark_rewritten(cursor)
        else:
            logger.warning(
                "%s still holds bytes of forgotten nodes: close its views and its other handles, and compact again",
                session.path,
            )
    return merged
