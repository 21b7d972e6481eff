"""Models of one's own: registered by name, trained, kept in snapshots, and found in installed packages."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typing_extensions import override

from multifacet import kge
from multifacet.kge.models.registry import model_class
from multifacet.kge.models.translations import Translation

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from multifacet.kge.models.model import Side

ROWS = [(f"user {u}", "buys", f"pin {p}") for u in range(40) for p in range(10) if u % 2 == p % 2]


class Stretch(kge.Model):
    """t is close to h * r."""

    is_distance = True
    translation = Translation.PRODUCT

    @override
    def initial_relation(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"diagonal": 1.0 + 0.01 * torch.randn(self.dim, generator=generator)}

    @override
    def translate(self, projected: Tensor, relation: Mapping[str, Tensor], side: Side) -> Tensor:
        return projected * relation["diagonal"]


class Mirror(kge.Model):
    """A map that no kernel has: h * r + s."""

    is_distance = False

    @override
    def initial_relation(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"scale": torch.randn(self.dim, generator=generator), "shift": torch.zeros(self.dim)}

    @override
    def translate(self, projected: Tensor, relation: Mapping[str, Tensor], side: Side) -> Tensor:
        return projected * relation["scale"] + relation["shift"]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    from multifacet.kge.models import registry  # noqa: PLC0415  (its own dictionary is put back)

    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    kge.register_model("stretch")(Stretch)
    kge.register_model("mirror")(Mirror)


def _train(**fields: Any) -> dict[str, float]:
    split = kge.read_split(ROWS, types={"buys": ("user", "pin")})
    config = kge.KgeConfig(dim=16, validation={"num_edges": 0}, **fields)
    result = kge.train_triples(split, config)
    return kge.evaluate(result.predictor(), split.train.edges(), kge.known_pairs(*split))


def test_a_model_of_known_kernels_trains_against_sampled_negatives() -> None:
    fields: dict[str, Any] = {"epochs": 40, "batch_size": 32, "chunk_size": 16, "num_uniform": 8, "num_degree": 0}
    assert _train(model="stretch", lr=1.0, **fields)["filtered_mrr"] > 0.9
    with pytest.raises(ValueError, match="has no kernel"):
        _train(model="mirror", **fields)


def test_a_model_in_torch_alone_trains_against_all_entities() -> None:
    assert _train(model="mirror", epochs=40, lr=0.1, full_softmax={"optimizer": "adam"})["filtered_mrr"] > 0.9


def test_snapshots_keep_the_name(tmp_path: Path) -> None:
    split = kge.read_split(ROWS, types={"buys": ("user", "pin")})
    config = kge.KgeConfig(model="stretch", dim=8, epochs=1, validation={"num_edges": 0})
    result = kge.train_triples(split, config)
    result.write_snapshot(tmp_path / "snapshot", split)
    predictor = kge.LinkPredictor.from_snapshot(tmp_path / "snapshot")
    assert isinstance(predictor.model, Stretch)


def test_names_are_of_one_class() -> None:
    assert {"transe", "transr", "transra", "distmult", "complex", "rotate", "stretch"} <= set(kge.model_names())
    with pytest.raises(ValueError, match=r"'complex' is multifacet\.kge\.models\.complex\.ComplEx already"):
        kge.register_model("complex")(Stretch)
    kge.register_model("stretch")(type("Stretch", (Stretch,), {"__module__": Stretch.__module__, "__qualname__": "Stretch"}))


@pytest.mark.parametrize("name", ["", "Upper", "a b", "1st", "../x", None])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="no name of a model"):
        kge.register_model(name)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match="no subclass"):
        kge.register_model("number")(int)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="lacks initial_relation, translate"):
        kge.register_model("empty")(type("Empty", (kge.Model,), {"is_distance": True}))
    members = {"initial_relation": Stretch.initial_relation, "translate": Stretch.translate}
    with pytest.raises(TypeError, match="lacks is_distance"):
        kge.register_model("vague")(type("Vague", (kge.Model,), members))
    with pytest.raises(TypeError, match="expected a Translation"):
        kge.register_model("odd")(type("Odd", (Stretch,), {"translation": 7}))
    with pytest.raises(ValueError, match="expected one of complex, "):
        kge.KgeConfig(model="nobody")


def test_an_installed_package_s_model_is_known_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_models.py").write_text(
        "from multifacet import kge\n\n\nclass Shifted(kge.TransE):\n    pass\n", encoding="utf-8"
    )
    installed = tmp_path / "shop_models-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-models\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[multifacet.kge_models]\nshop-shifted = shop_models:Shifted\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "shop-shifted" in kge.model_names()
    assert model_class("shop-shifted").__name__ == "Shifted"
    assert repr(kge.build_model(kge.KgeConfig(model="shop-shifted", dim=8))) == "Shifted(dim=8, distance='squared')"
    sys.modules.pop("shop_models")
