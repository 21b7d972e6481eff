"""What is published of link prediction belongs to the configurations that stand in the code, and can be run again."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.kge import kge_quality


def test_every_published_record_is_of_a_case_and_bears_its_name():
    cases = {case.key: case for case in kge_quality.cases()}
    paths = list(kge_quality.RECORDS.glob("*.json"))
    assert paths
    for path in paths:
        record = kge_quality.read_record(cases[path.stem], kge_quality.RECORDS)
        assert record is not None
        assert record["case"] == cases[path.stem].name


def test_a_named_case_is_trained_again_though_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trained: list[str] = []

    def train(case: kge_quality.Case) -> dict[str, Any] | None:
        trained.append(case.name)
        published = kge_quality.read_record(case, kge_quality.RECORDS)
        assert published is not None
        return published | {"test": published["test"] | {"filtered_mrr": 0.5}}

    monkeypatch.setattr(kge_quality, "RUNS", tmp_path)
    monkeypatch.setattr(kge_quality, "train_case", train)
    monkeypatch.setenv("KGE_RUN", "wn18rr/rotate")
    values = {row.case: row.value for row in kge_quality.run(quick=False) if row.metric == kge_quality.FILTERED_MRR}
    assert trained == ["wn18rr/rotate"]
    assert values["wn18rr/rotate"] == 0.5
    assert values["wn18rr/transe"] != 0.5
    list(kge_quality.run(quick=True))
    assert trained == ["wn18rr/rotate"]
