"""Checks of live servers, by the metrics that they export."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client.parser import text_string_to_metric_families

from multifacet.pipeline.diagnosis.finding import Finding, above, below

__all__ = ["Scrape", "check_servers", "scrape"]

_TIMEOUT_S: Final = 5.0
_MIN_REQUESTS: Final = 20
_HIDDEN: Final = 0.2
_WAIT_WARN: Final = 0.5
_UNKNOWN_WARN: Final = 0.2
_FAILED_WARN: Final = 0.01
_AGE_WARN_S: Final = 30 * 86_400.0
_CURRENT: Final = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Scrape:
    """What one server said.

    Attributes:
        address: Where.
        role: "lookup" or "ranker".
        samples: Metric's name -> its samples: labels and value.
    """

    address: str
    role: Literal["lookup", "ranker"]
    samples: Mapping[str, Sequence[tuple[Mapping[str, str], float]]]

    @classmethod
    def read(cls, address: str, text: str) -> Scrape:
        """Reads what a metrics endpoint answered.

        Args:
            address: The endpoint.
            text: Its answer, in Prometheus' text format.

        Raises:
            ValueError: It is no server of ours.
        """
        samples: dict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name].append((dict(sample.labels), float(sample.value)))
        if "multifacet_ranker_ready" in samples:
            return cls(address=address, role="ranker", samples=samples)
        if "multifacet_lookup_ready" in samples:
            return cls(address=address, role="lookup", samples=samples)
        raise ValueError(
            f"{address} answers, but not as a lookup server or a ranker: give the address of its metrics (metrics_listen)"
        )

    def sum(self, name: str, **labels: str) -> float:
        """Adds up a metric's samples that have some labels."""
        found = self.samples.get(f"multifacet_{self.role}_{name}", ())
        return sum(value for given, value in found if all(given.get(key) == wanted for key, wanted in labels.items()))

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions that it holds."""
        return tuple(labels["version"] for labels, _ in self.samples.get(f"multifacet_{self.role}_version_held", ()))

    @property
    def current(self) -> str:
        """The version that it serves; empty if none."""
        held = self.samples.get(f"multifacet_{self.role}_version_held", ())
        return next((labels["version"] for labels, value in held if value == _CURRENT), "")


def scrape(address: str) -> Scrape:
    """Asks a server for its metrics.

    Args:
        address: ``HOST:PORT`` of its metrics.

    Raises:
        OSError: It does not answer.
        ValueError: It is no server of ours.
    """
    url = f"http://{address.removeprefix('http://').rstrip('/').removesuffix('/metrics')}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            text = answer.read().decode()
    except (urllib.error.URLError, TimeoutError) as error:
        raise OSError(
            f"{address} does not answer ({error}): give HOST:PORT of the server's metrics (metrics_listen)"
        ) from error
    return Scrape.read(address, text)


def check_servers(scrapes: Sequence[Scrape], *, clock: Callable[[], float] = time.time) -> list[Finding]:
    """Checks servers of one deployment, each by itself and all together.

    Args:
        scrapes: What they said.
        clock: Seconds since 1970.
    """
    findings = []
    for found in scrapes:
        findings += [_ready(found), *_failures(found), *_unknown_ids(found)]
        if found.role == "ranker":
            findings += [*_overlap(found), *_age(found, clock)]
    return findings + _skew(scrapes)


def _ready(found: Scrape) -> Finding:
    return below(
        "ready",
        found.address,
        found.sum("ready"),
        None,
        1.0,
        told=f"{found.role} {found.address}: {'ready' if found.sum('ready') else 'not ready'}",
        cause="it has no version, or its lookup servers lack the version: a half-finished deployment",
        mend="`multifacet rollout status --state FOLDER`, then `multifacet rollout advance --to-end` or `rollback`",
    )


def _failures(found: Scrape) -> list[Finding]:
    total = found.sum("requests_total")
    if total < _MIN_REQUESTS:
        return []
    share = 1.0 - found.sum("requests_total", code="OK") / total
    return [
        above(
            "failed requests",
            found.address,
            share,
            _FAILED_WARN,
            None,
            told=f"{found.role} {found.address}: {share:.2%} of {total:,.0f} requests failed",
            cause="overload, deadlines, or requests of a version that is not there",
            mend=f"look at multifacet_{found.role}_requests_total by code; docs/serving.md says what each means",
        )
    ]


def _unknown_ids(found: Scrape) -> list[Finding]:
    tables = {labels["table"]: value for labels, value in found.samples.get(f"multifacet_{found.role}_rows_total", ())}
    findings = []
    for table, rows in sorted(tables.items()):
        if rows < _MIN_REQUESTS:
            continue
        share = found.sum("unknown_ids_total", table=table) / rows
        findings.append(
            above(
                "unknown ids",
                f"{found.address} {table}",
                share,
                _UNKNOWN_WARN,
                None,
                told=f"{found.role} {found.address}: {share:.1%} of the ids of {table} have no row",
                cause="new ids since the release, or requests that spell ids in another way than training did",
                mend="release tables of a later window (`multifacet run`), and compare some ids with `multifacet graph query`",
            )
        )
    return findings


def _overlap(found: Scrape) -> list[Finding]:
    """A lookup that is started early is hidden behind the request's other work; what is waited for is not."""
    requests = found.sum("phase_seconds_count", phase="total")
    lookup, wait = (found.sum("phase_seconds_sum", phase=phase) for phase in ("lookup", "lookup_wait"))
    total = found.sum("phase_seconds_sum", phase="total")
    if requests < _MIN_REQUESTS or not lookup or not total:
        return []
    hidden, share = max(0.0, 1.0 - wait / lookup), wait / total
    is_exposed = hidden < _HIDDEN
    return [
        above(
            "lookup overlap",
            found.address,
            share,
            _WAIT_WARN if is_exposed else 1.0,
            None,
            told=f"ranker {found.address}: waits for lookups in {share:.0%} of its time; {hidden:.0%} of a lookup is hidden "
            "behind other work",
            cause="the lookup is not overlapped, or takes far longer than the ranker's own work: a slow network or server",
            mend="compare phase lookup with lookup_server: if the network takes it, put the lookup server nearer or on a Unix "
            "socket; if the server does, give it cores, or more shards",
        )
    ]


def _age(found: Scrape, clock: Callable[[], float]) -> list[Finding]:
    until = found.sum("knows_until_timestamp_seconds")
    if not until:
        return []
    age = clock() - until
    return [
        above(
            "freshness",
            found.address,
            age / 86_400.0,
            _AGE_WARN_S / 86_400.0,
            None,
            told=f"ranker {found.address}: knows of events until {age / 86_400.0:.1f} days ago",
            cause="no release was rolled out lately",
            mend="`multifacet runs PIPELINE.toml` says what stops the releases",
        )
    ]


def _skew(scrapes: Sequence[Scrape]) -> list[Finding]:
    """Rankers that serve different versions, and lookup servers that lack one of these."""
    rankers = [found for found in scrapes if found.role == "ranker" and found.current]
    served = sorted({found.current for found in rankers})
    if not rankers or len(scrapes) < 2:
        return []
    lacking = [
        (found.address, version)
        for found in scrapes
        if found.role == "lookup"
        for version in served
        if version not in found.versions
    ]
    told = f"rankers serve {', '.join(version[:12] for version in served)}"
    if lacking:
        told += "; " + ", ".join(f"{address} lacks {version[:12]}" for address, version in lacking)
    return [
        above(
            "version skew",
            "deployment",
            float(len(served) - 1 + len(lacking)),
            0.0 if not lacking else None,
            0.0 if lacking else None,
            told=told,
            cause="a deployment that was not finished, or a host that was left out",
            mend="`multifacet rollout status --state FOLDER`, then `multifacet rollout advance --to-end --state FOLDER "
            "--token-file FILE`",
        )
    ]
