"""What a scoring model is: scores (head, relation, tail), behind one interface.

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
from typing import TYPE_CHECKING, ClassVar, Final, Literal, Protocol, Self

import torch
from torch import Tensor

from multifacet.inputs import number, one_of, takes, whole
from multifacet.kernels.similarity import Similarity
from multifacet.kge.models.projections import Projection, ProjectionKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multifacet.kge.models.translations import Translation

__all__ = ["Distance", "Model", "ModelFields", "RelationInit", "Side", "multiply", "multiply_pairs", "near_origin", "noise"]

Distance = Literal["squared", "l2", "l1"]
RelationInit = Literal["identity", "signs", "entities"]
Side = Literal["head", "tail"]  # the side of a triple that is asked for

_BLOCK: Final = 1 << 24  # differences of queries and candidates held at once


class ModelFields(Protocol):
    """What a model reads of a `KgeConfig`."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def dim(self) -> int: ...  # noqa: D102
    @property
    def rank(self) -> int: ...  # noqa: D102
    @property
    def distance(self) -> Distance: ...  # noqa: D102
    @property
    def first_relations(self) -> RelationInit: ...  # noqa: D102
    @property
    def init_scale(self) -> float: ...  # noqa: D102


class Model(ABC):
    """A scoring model; holds no tables and no relation parameters, only their shapes.

    A model of your own is a subclass under a name (`register_model`). Class attributes say what it is made of: `is_distance`,
    whether scores are minus a distance or dot products; `has_complex_entities`, whether a vector is real parts and then
    imaginary ones; `has_diagonal`, whether relations begin by `relation_init`; `has_projection`, whether `project` is not the
    identity; `translation`, which kernel `translate` is, None for no kernel.

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
    has_diagonal: ClassVar[bool] = False
    has_projection: ClassVar[bool] = False
    translation: ClassVar[Translation | None] = None

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
    def kernel(self) -> Translation:
        """The kernel of `translate`.

        Raises:
            ValueError: if the model has none, so that sampled negatives cannot be trained against.
        """
        if self.translation is None:
            raise ValueError(
                f"{self} has no kernel (its `translation` is None), and training against sampled negatives in one process runs "
                "kernels: set full_softmax, train in several processes (torchrun), or name the kernel that its `translate` is"
            )
        return self.translation

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
            return 1.0 + noise(size, generator=generator)
        drawn = torch.randn(size, generator=generator)
        return drawn if self.relation_init == "signs" else drawn * self.init_scale

    def _moduli(self, queries: Tensor, candidates: Tensor) -> Tensor:
        difference = queries[:, None] - candidates
        if not self.has_complex_entities:
            return -difference.abs().sum(-1)
        real, imaginary = difference.chunk(2, dim=-1)
        return -(real.square() + imaginary.square()).sqrt().sum(-1)

    @classmethod
    def from_config(cls, config: ModelFields) -> Self:
        """Build the model as a configuration says."""
        return cls(config.dim, config.distance, config.first_relations, config.init_scale)

    def score_relations(self, heads: Tensor, tails: Tensor, relations: Mapping[str, Tensor]) -> Tensor:
        """Score pairs with each of some relations but for a constant of the pair, by one matrix product.

        Args:
            heads: float [n, D].
            tails: float [n, D].
            relations: the relations' parameters, [K, ...] each.

        Returns:
            float [n, K].

        Raises:
            ValueError: if it takes more than a matrix product, as where entities are projected by their relation.
        """
        del heads, tails, relations
        raise ValueError(f"relation prediction would have to project each pair by every relation of {self}: leave it out")

    def __repr__(self) -> str:
        suffix = f", distance={self.distance!r}" if self.is_distance else ""
        return f"{type(self).__name__}(dim={self.dim}{suffix})"


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


def multiply(entities: Tensor, real: Tensor, imaginary: Tensor, *, conjugate: bool) -> Tensor:
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


def noise(*shape: int, generator: torch.Generator) -> Tensor:
    """Draw the first values of what should change nothing at first: normal, of deviation 0.01."""
    return torch.randn(*shape, generator=generator) * 0.01


def multiply_pairs(heads: Tensor, tails: Tensor) -> Tensor:
    """Multiply complex heads by conjugated tails, and conjugate that: float [n, D] of vectors [n, D].

    Re(h r conj(t)) is then the product of these real numbers with those of r.
    """
    head_real, head_imaginary = heads.chunk(2, dim=-1)
    tail_real, tail_imaginary = tails.chunk(2, dim=-1)
    return torch.cat(
        [head_real * tail_real + head_imaginary * tail_imaginary, head_real * tail_imaginary - head_imaginary * tail_real],
        dim=-1,
    )
