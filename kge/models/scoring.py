"""Scoring models of (head, relation, tail), behind one interface.

Every model is three maps and a similarity:

    project(entity, relation)          into the space where the relation compares its two ends
    translate(projected, relation)     a query for the other end, from the tail's or the head's side
    similarity(query, projected)       dot product, or minus a distance

so a triple's score and a batch of queries against shared candidates are the same formula. The squared Euclidean distance is one
matrix product, -|q - c|^2 = 2 q.c - |c|^2 - |q|^2, and so is its root; the sum of absolute differences ("l1", of RotatE the sum
of complex moduli, as in its paper) is none and costs three to five times as much.

    model      parameters of a relation      project(e)            query for the tail    similarity
    TransE     r [D]                         e                     h + r                 distance
    TransR     M [D, D], r [D]               e M                   h M + r               distance
    TransRA    U, V [D, k], r [D]            e + (e U) V^T         p(h) + r              distance
    DistMult   r [D]                         e                     h * r                 dot
    ComplEx    r [D/2] complex               e                     h * r (complex)       real part of dot
    RotatE     angle [D/2]                   e                     h * exp(i angle)      distance
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import torch
from torch import Tensor
from typing_extensions import override

from multifacet.inputs import expect_attributes, number, one_of, takes, whole
from multifacet.kernels.similarity import Similarity
from multifacet.kge.models.projections import Projection, ProjectionKind
from multifacet.kge.models.translations import Translation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multifacet.kge.config import Distance, KgeConfig, RelationInit

__all__ = ["ComplEx", "DistMult", "Model", "RotatE", "Side", "TransE", "TransR", "TransRA", "build_model", "near_origin"]

Side = Literal["head", "tail"]  # the side of a triple that is asked for

_BLOCK: Final = 1 << 24  # differences of queries and candidates held at once


class Model(ABC):
    """A scoring model; holds no tables and no relation parameters, only their shapes.

    Its maps are stated twice: in torch here, for scores of trained tables and as what tests differentiate, and as kernels
    with closed-form gradients (`translation`, `projection`, `similarity`), for training.

    Args:
        dim: width D of an entity's vector.
        distance: which distance scores are minus of; of no meaning where the similarity is a dot product.
        relation_init: how diagonals begin, see `KgeConfig`.
        init_scale: standard deviation of diagonals that begin as entities do.
    """

    is_distance: ClassVar[bool]
    has_complex_entities: ClassVar[bool] = False
    translation: ClassVar[Translation]

    @takes(
        dim=whole(1),
        distance=one_of("squared", "l2", "l1"),
        relation_init=one_of("identity", "signs", "entities"),
        init_scale=number(above=0.0),
    )
    def __init__(
        self,
        dim: int,
        distance: Distance = "squared",
        relation_init: RelationInit = "identity",
        init_scale: float = 0.1,
    ) -> None:
        self.dim = dim
        self.distance = distance
        self.relation_init = relation_init
        self.init_scale = init_scale

    @abstractmethod
    def initial_relation(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw one relation's first parameters, close to those that change nothing, or as `KgeConfig.relation_init` says."""

    @property
    def projection(self) -> Projection:
        """The kernel of `project`."""
        return Projection(ProjectionKind.NONE)

    @property
    def similarity(self) -> Similarity:
        """The kernel of the similarity."""
        if not self.is_distance:
            return Similarity.DOT
        elementwise = Similarity.MODULI if self.has_complex_entities else Similarity.MANHATTAN
        kinds = {"squared": Similarity.SQUARED_EUCLIDEAN, "l2": Similarity.EUCLIDEAN, "l1": elementwise}
        return kinds[self.distance]

    def project(self, entities: Tensor, relation: Mapping[str, Tensor]) -> Tensor:
        """Map entities [n, D] into the relation's space [n, D]."""
        del relation
        return entities

    @abstractmethod
    def translate(self, projected: Tensor, relation: Mapping[str, Tensor], side: Side) -> Tensor:
        """Turn the projected known ends [n, D] into queries for the end on `side`, [n, D]."""

    def score(self, heads: Tensor, tails: Tensor, relation: Mapping[str, Tensor]) -> Tensor:
        """Score triples of one relation from their entities' vectors.

        Args:
            heads: float [n, D].
            tails: float [n, D].
            relation: the relation's parameters.

        Returns:
            float [n], larger is likelier.
        """
        queries = self.translate(self.project(heads, relation), relation, "tail")
        tails = self.project(tails, relation)
        if not self.is_distance:
            return (queries * tails).sum(-1)
        difference = queries - tails
        if self.distance == "l1":
            if self.has_complex_entities:
                real, imaginary = difference.chunk(2, dim=-1)
                return -(real.square() + imaginary.square()).sqrt().sum(-1)
            return -difference.abs().sum(-1)
        squares = difference.square().sum(-1)
        return -squares if self.distance == "squared" else -squares.sqrt()

    def score_candidates(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Score translated queries [B, D] against projected candidates [N, D], [B, N]; one matrix product unless "l1"."""
        if not self.is_distance:
            return queries @ candidates.t()
        if self.distance == "l1":
            if self.has_complex_entities or queries.dtype != torch.float32:
                blocks = [
                    self._moduli(block, candidates) for block in torch.split(queries, max(1, _BLOCK // candidates.numel()))
                ]
                return torch.cat(blocks) if blocks else queries.new_empty(0, len(candidates))
            return -torch.cdist(queries, candidates, p=1.0)
        # Of tables that lie far from the origin a product keeps no digits of a distance.
        origin = near_origin(candidates)
        queries, candidates = queries - origin, candidates - origin
        squares = torch.addmm(
            -candidates.square().sum(-1) - queries.square().sum(-1, keepdim=True), queries, candidates.t(), alpha=2.0
        )
        squares = squares.clamp_(max=0.0)
        return squares if self.distance == "squared" else -(-squares).sqrt_()

    def _first_diagonal(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw a diagonal of ones but for noise, of numbers of both signs, or of such as short as entities begin."""
        if self.relation_init == "identity":
            return 1.0 + _noise(size, generator=generator)
        drawn = torch.randn(size, generator=generator)
        return drawn if self.relation_init == "signs" else drawn * self.init_scale

    def _moduli(self, queries: Tensor, candidates: Tensor) -> Tensor:
        difference = queries[:, None] - candidates
        if not self.has_complex_entities:
            return -difference.abs().sum(-1)
        real, imaginary = difference.chunk(2, dim=-1)
        return -(real.square() + imaginary.square()).sqrt().sum(-1)

    def __repr__(self) -> str:
        suffix = f", distance={self.distance!r}" if self.is_distance else ""
        return f"{type(self).__name__}(dim={self.dim}{suffix})"


class TransE(Model):
    """Translation: t is close to h + r (Bordes et al., NeurIPS 2013)."""

    is_distance = True
    translation = Translation.ADDITION

    @override
    def initial_relation(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"translation": _noise(self.dim, generator=generator)}

    @override
    def translate(self, projected: Tensor, relation: Mapping[str, Tensor], side: Side) -> Tensor:
        translation = relation["translation"]
        return projected + translation if side == "tail" else projected - translation


class TransR(TransE):
    """Translation in a space of the relation's own: t M is close to h M + r (Lin et al., AAAI 2015)."""

    @override
    def initial_relation(self, generator: torch.Generator) -> dict[str, Tensor]:
        projection = torch.eye(self.dim) + _noise(self.dim, self.dim, generator=generator)
        return {"projection": projection, **super().initial_relation(generator)}

    @property
    @override
    def projection(self) -> Projection:
        return Projection(ProjectionKind.FULL, self.dim)

    @override
    def project(self, entities: Tensor, relation: Mapping[str, Tensor]) -> Tensor:
        return entities @ relation["projection"]


class TransRA(TransE):
    """TransR whose projections are anchored at the identity: M_r = I + U_r V_r^T with U_r, V_r [D, k].

    Entities of one type stay comparable across relations (their dot products mean something without a projection), and
    a relation costs D (2 k + 1) numbers instead of D (D + 1). "TransR with Anchors" is named but not published as a
    formula in arXiv 2508.02609; this is the project's own reading of it.

    Args:
        dim: width D of an entity's vector.
        rank: k.
        distance: which distance scores are minus of.
    """

    @takes(rank=whole(1))
    def __init__(self, dim: int, rank: int, distance: Distance = "squared") -> None:
        super().__init__(dim, distance)
        self.rank = rank

    @override
    def initial_relation(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "left": _noise(self.dim, self.rank, generator=generator) * 10.0,
            "right": torch.zeros(self.dim, self.rank),  # M_r is I at first; `left` is not zero, so that `right` can learn
            **super().initial_relation(generator),
        }

    @property
    @override
    def projection(self) -> Projection:
        return Projection(ProjectionKind.ANCHORED, self.dim, self.rank)

    @override
    def project(self, entities: Tensor, relation: Mapping[str, Tensor]) -> Tensor:
        return entities + (entities @ relation["left"]) @ relation["right"].mT


class DistMult(Model):
    """Bilinear with a diagonal: sum of h * r * t (Yang et al., ICLR 2015)."""

    is_distance = False
    translation = Translation.PRODUCT

    @override
    def initial_relation(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"diagonal": self._first_diagonal(self.dim, generator)}

    @override
    def translate(self, projected: Tensor, relation: Mapping[str, Tensor], side: Side) -> Tensor:
        del side  # the score is symmetric in head and tail
        return projected * relation["diagonal"]


class ComplEx(Model):
    """Complex bilinear: Re(sum of h * r * conj(t)) (Trouillon et al., ICML 2016).

    A vector's first half holds the real parts, its second half the imaginary parts.
    """

    is_distance = False
    has_complex_entities = True
    translation = Translation.COMPLEX_PRODUCT

    @override
    def initial_relation(self, generator: torch.Generator) -> dict[str, Tensor]:
        half = self.dim // 2
        real = self._first_diagonal(half, generator)
        if self.relation_init == "entities":
            return {"real": real, "imaginary": self._first_diagonal(half, generator)}
        return {"real": real, "imaginary": _noise(half, generator=generator)}

    @override
    def translate(self, projected: Tensor, relation: Mapping[str, Tensor], side: Side) -> Tensor:
        return _multiply(projected, relation["real"], relation["imaginary"], conjugate=side == "head")


class RotatE(Model):
    """Rotation: t is close to h * exp(i angle), elementwise in the complex plane (Sun et al., ICLR 2019).

    A vector's first half holds the real parts, its second half the imaginary parts. A rotation keeps distances, so the
    head's query is the tail turned back.
    """

    is_distance = True
    has_complex_entities = True
    translation = Translation.ROTATION

    @override
    def initial_relation(self, generator: torch.Generator) -> dict[str, Tensor]:
        # All around: from rotations near the identity, training ends in "linked nodes are alike", whatever the relation.
        return {"angle": (2.0 * torch.rand(self.dim // 2, generator=generator) - 1.0) * math.pi}

    @override
    def translate(self, projected: Tensor, relation: Mapping[str, Tensor], side: Side) -> Tensor:
        angle = relation["angle"]
        return _multiply(projected, angle.cos(), angle.sin(), conjugate=side == "head")


def near_origin(vectors: Tensor) -> Tensor:
    """Give a point to measure vectors [n, D] from, [D]: their mean, in steps of about their spread.

    Distances do not change if both ends are moved by it, and whole steps of a power of two are subtracted without rounding:
    vectors near the origin stay as they are, and equal distances stay equal.
    """
    if not len(vectors):
        return vectors.new_zeros(vectors.shape[1])
    with torch.no_grad():
        mean = vectors.mean(0)
        spread = float(torch.linalg.vector_norm(vectors - mean)) / vectors.numel() ** 0.5
        if not 0 < spread < math.inf:
            return mean
        step = 2.0 ** math.floor(math.log2(spread))
        return ((mean.double() / step).round() * step).to(vectors)


def build_model(config: KgeConfig) -> Model:
    """Build the model that a configuration names."""
    expect_attributes("config", config, ("model", "dim", "distance"), "KgeConfig")
    if config.model == "transra":
        return TransRA(config.dim, config.rank, config.distance)
    models: dict[str, type[Model]] = {
        "transe": TransE,
        "transr": TransR,
        "distmult": DistMult,
        "complex": ComplEx,
        "rotate": RotatE,
    }
    return models[config.model](config.dim, config.distance, config.first_relations, config.init_scale)


def _multiply(entities: Tensor, real: Tensor, imaginary: Tensor, *, conjugate: bool) -> Tensor:
    """Multiply complex entities [n, D] by one complex vector [D/2], or by its conjugate."""
    if conjugate:
        imaginary = -imaginary
    entity_real, entity_imaginary = entities.chunk(2, dim=-1)
    return torch.cat(
        [
            entity_real * real - entity_imaginary * imaginary,
            entity_real * imaginary + entity_imaginary * real,
        ],
        dim=-1,
    )


def _noise(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator) * 0.01
