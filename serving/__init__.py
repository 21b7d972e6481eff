"""Releases and the servers that score with them.

Names are imported at their first use: a lookup server and a client need neither torch nor the publisher.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from multifacet.serving import numba_cache

if TYPE_CHECKING:
    from multifacet.serving.admin import AdminClient
    from multifacet.serving.answers import LookupAnswer, RankAnswer, TableRows
    from multifacet.serving.async_client import AsyncLookupClient, AsyncRankerClient
    from multifacet.serving.client import LookupClient, RankerClient
    from multifacet.serving.config import LookupConfig, RankerConfig
    from multifacet.serving.connect import connect_lookup
    from multifacet.serving.errors import (
        BrokenAnswerError,
        DeadlineExceededError,
        InvalidRequestError,
        OverloadedError,
        ServingError,
        UnauthenticatedError,
        UnavailableError,
        VersionNotLoadedError,
    )
    from multifacet.serving.framed_client import FramedLookupClient
    from multifacet.serving.journal import RolledBackError, RolloutError
    from multifacet.serving.limits import Limits
    from multifacet.serving.local import LocalDeployment, ServerProcess
    from multifacet.serving.lookup import LookupServer
    from multifacet.serving.policy import ReplicaPolicy
    from multifacet.serving.process import serve_lookup, serve_ranker
    from multifacet.serving.publisher import publish
    from multifacet.serving.ranker import RankerServer
    from multifacet.serving.release import Release
    from multifacet.serving.rollout import Rollout

numba_cache.settle()

_HOMES = {
    "admin": ("AdminClient",),
    "answers": ("LookupAnswer", "RankAnswer", "TableRows"),
    "async_client": ("AsyncLookupClient", "AsyncRankerClient"),
    "client": ("LookupClient", "RankerClient"),
    "config": ("LookupConfig", "RankerConfig"),
    "connect": ("connect_lookup",),
    "errors": (
        "BrokenAnswerError",
        "DeadlineExceededError",
        "InvalidRequestError",
        "OverloadedError",
        "ServingError",
        "UnauthenticatedError",
        "UnavailableError",
        "VersionNotLoadedError",
    ),
    "framed_client": ("FramedLookupClient",),
    "journal": ("RolledBackError", "RolloutError"),
    "limits": ("Limits",),
    "local": ("LocalDeployment", "ServerProcess"),
    "lookup": ("LookupServer",),
    "policy": ("ReplicaPolicy",),
    "process": ("serve_lookup", "serve_ranker"),
    "publisher": ("publish",),
    "ranker": ("RankerServer",),
    "release": ("Release",),
    "rollout": ("Rollout",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AdminClient",
    "AsyncLookupClient",
    "AsyncRankerClient",
    "BrokenAnswerError",
    "DeadlineExceededError",
    "FramedLookupClient",
    "InvalidRequestError",
    "Limits",
    "LocalDeployment",
    "LookupAnswer",
    "LookupClient",
    "LookupConfig",
    "LookupServer",
    "OverloadedError",
    "RankAnswer",
    "RankerClient",
    "RankerConfig",
    "RankerServer",
    "Release",
    "ReplicaPolicy",
    "RolledBackError",
    "Rollout",
    "RolloutError",
    "ServerProcess",
    "ServingError",
    "TableRows",
    "UnauthenticatedError",
    "UnavailableError",
    "VersionNotLoadedError",
    "connect_lookup",
    "publish",
    "serve_lookup",
    "serve_ranker",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
