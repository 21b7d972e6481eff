"""Snapshots of knowledge graph embeddings in the basis of older ones: entities and relations together, every score as it was.

What a model's scores allow (a, b: node types of a relation's heads and tails):

    model     entities                                relations
    TransE    e Q + v_a                               r Q + v_b - v_a; Q any rotation, of "l1" signs and a permutation
    TransR    e Q + v_a; Q any rotation               Q^T M, r + (v_b - v_a) Q^T M
    TransRA   e Q + v_a; Q as of TransE               Q^T U, Q^T V, r Q + (v_b - v_a) M'
    DistMult  permuted, times signs s_a               permuted, times s_a s_b
    ComplEx   permuted, conjugated or not, times      likewise, times conj(u_a) u_b
              phases u_a
    RotatE    as ComplEx                              angles likewise
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from multifacet.inputs import PATH, expect_attributes, one_of, takes
from multifacet.tables import Snapshot, align_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from multifacet.tables import Alignment
    from multifacet.tables.alignment import Symmetry

__all__ = ["align", "symmetry_of"]

_Parameters = dict[str, "Tensor"]


@takes(distance=one_of("squared", "l2", "l1"))
def symmetry_of(model: str, distance: str = "squared") -> Symmetry:
    """Give what leaves every score of a model as it is.

    Args:
        model: as in `KgeConfig`.
        distance: likewise.

    Raises:
        ValueError: if there is no such model or distance.

    Example:
        >>> symmetry_of("transe"), symmetry_of("transe", "l1"), symmetry_of("rotate")
        ('shifted_rotation', 'shifted_signs', 'phases')
    """
    known: dict[str, Symmetry] = {
        "transe": "shifted_signs" if distance == "l1" else "shifted_rotation",
        "transr": "shifted_rotation",  # its relations have spaces of their own, which stay as they are
        "transra": "shifted_signs" if distance == "l1" else "shifted_rotation",
        "distmult": "signs",
        "complex": "phases",
        "rotate": "phases",
    }
    if model not in known:
        raise ValueError(f"model is {model!r}; expected one of {', '.join(known)}")
    return known[model]


@takes(path=PATH)
def align(path: str | Path, new: Snapshot, to: Snapshot) -> Snapshot:
    """Write a snapshot anew in the basis of an older one of the same model.

    Relations' parameters and their optimizer's state are changed along.

    Args:
        path: directory to write; it must not exist.
        new: the snapshot to write anew.
        to: the older one.

    Returns:
        The aligned snapshot.

    Raises:
        ValueError: if the snapshots are of other models or widths, share no trained row, or do not say what their relations
            join.
        ArtifactError: if something is at `path`.
    """
    for name, given in (("new", new), ("to", to)):
        expect_attributes(name, given, ("config", "vectors", "parameters"), "Snapshot")
    for name in ("model", "distance"):
        if new.config.get(name) != to.config.get(name):
            raise ValueError(
                f"{new.path} is of {name} {new.config.get(name)!r} and {to.path} of {to.config.get(name)!r}: vectors of one "
                "mean nothing in the other's basis"
            )
    if "model" not in new.config:
        raise ValueError(f"{new.path} does not say what model it is of: align what `kge` wrote, before it is renamed")
    tensors = new.parameters()
    if tensors and "ends" not in new.window:
        raise ValueError(f"{new.path} does not say which node types its relations join: pretrain it again")
    symmetry = symmetry_of(new.config["model"], new.config.get("distance", "squared"))
    changed = partial(_changed, tensors, new.config["model"], new.window.get("ends", {}))
    return align_snapshot(path, new, to, symmetry, parameters=changed)


def _changed(tensors: Mapping[str, Tensor], model: str, ends: Mapping[str, Any], alignment: Alignment) -> dict[str, Tensor]:
    """Give the relations' parameters, and their squares, in another basis."""
    change = _CHANGES[model]
    found: dict[str, Tensor] = dict(tensors)
    groups: dict[tuple[str, str], _Parameters] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        relation, _, parameter = rest.rpartition("/")
        if kind in {"relation", "relation_adagrad", "inverse", "inverse_adagrad"}:
            groups.setdefault((kind, relation), {})[parameter] = value
    for (kind, relation), parameters in groups.items():
        if kind.endswith("_adagrad"):
            continue
        head, tail = _ends_of(relation, ends, is_inverse=kind == "inverse")
        values, squares = change(parameters, groups.get((f"{kind}_adagrad", relation), {}), alignment, head, tail)
        found |= {f"{kind}/{relation}/{name}": value.float() for name, value in values.items()}
        found |= {f"{kind}_adagrad/{relation}/{name}": value.float() for name, value in squares.items()}
    return found


def _ends_of(relation: str, ends: Mapping[str, Any], *, is_inverse: bool) -> tuple[str, str]:
    if relation not in ends and relation.endswith("^-1"):  # how files named an inverse before it was a kind of its own
        relation, is_inverse = relation.removesuffix("^-1"), True
    head, tail = ends[relation]
    return (tail, head) if is_inverse else (head, tail)


def _change_translation(
    values: _Parameters, squares: _Parameters, alignment: Alignment, head: str, tail: str
) -> tuple[_Parameters, _Parameters]:
    matrix, shift = alignment.matrix(head), alignment.shift(tail) - alignment.shift(head)
    turned = {name: value @ matrix.square() for name, value in _double(squares).items() if name == "translation"}
    return {"translation": _double(values)["translation"] @ matrix + shift}, turned


def _change_projected(
    values: _Parameters, squares: _Parameters, alignment: Alignment, head: str, tail: str
) -> tuple[_Parameters, _Parameters]:
    matrix, shift = alignment.matrix(head).t(), alignment.shift(tail) - alignment.shift(head)
    values, squares = _double(values), _double(squares)
    projection = matrix @ values["projection"]
    turned = {name: matrix.square() @ value if name == "projection" else value for name, value in squares.items()}
    return {"projection": projection, "translation": values["translation"] + shift @ projection}, turned


def _change_anchored(
    values: _Parameters, squares: _Parameters, alignment: Alignment, head: str, tail: str
) -> tuple[_Parameters, _Parameters]:
    matrix, shift = alignment.matrix(head), alignment.shift(tail) - alignment.shift(head)
    values, squares = _double(values), _double(squares)
    left, right = matrix.t() @ values["left"], matrix.t() @ values["right"]
    translation = values["translation"] @ matrix + shift + (shift @ left) @ right.t()
    turned = {
        name: value @ matrix.square() if name == "translation" else matrix.square().t() @ value
        for name, value in squares.items()
    }
    return {"left": left, "right": right, "translation": translation}, turned


def _change_diagonal(
    values: _Parameters, squares: _Parameters, alignment: Alignment, head: str, tail: str
) -> tuple[_Parameters, _Parameters]:
    matrix = alignment.matrix(head).abs()
    signs = alignment.matrix(head).sum(0) * alignment.matrix(tail).sum(0)
    turned = {name: value @ matrix for name, value in _double(squares).items()}
    return {"diagonal": (_double(values)["diagonal"] @ matrix) * signs}, turned


def _change_complex(
    values: _Parameters, squares: _Parameters, alignment: Alignment, head: str, tail: str
) -> tuple[_Parameters, _Parameters]:
    turn = _between(alignment, head, tail)
    values, squares = _double(values), _double(squares)
    real, imaginary = turn(torch.cat([values["real"], values["imaginary"]])).chunk(2)
    if not squares:
        return {"real": real, "imaginary": imaginary}, {}
    basis = turn(torch.eye(2 * len(real), dtype=torch.float64))
    spread = (torch.cat([squares["real"], squares["imaginary"]]) @ basis.square()).chunk(2)
    return {"real": real, "imaginary": imaginary}, {"real": spread[0], "imaginary": spread[1]}


def _change_angle(
    values: _Parameters, squares: _Parameters, alignment: Alignment, head: str, tail: str
) -> tuple[_Parameters, _Parameters]:
    angle = _double(values)["angle"]
    real, imaginary = _between(alignment, head, tail)(torch.cat([angle.cos(), angle.sin()])).chunk(2)
    half = len(angle)
    places = alignment.matrix(head)[:half].square()
    order = places[:, :half] + places[:, half:]
    return {"angle": torch.atan2(imaginary, real)}, {name: value @ order for name, value in _double(squares).items()}


def _between(alignment: Alignment, head: str, tail: str) -> Callable[[Tensor], Tensor]:
    """Give the map of a relation's complex numbers [..., D]: ordered, conjugated, times conj(u_head) u_tail."""
    half = len(alignment.matrix(head)) // 2
    ones = torch.cat([torch.ones(half), torch.zeros(half)]).double()
    phase = torch.complex(*(ones @ alignment.matrix(head)).chunk(2)).conj()

    def turn(numbers: Tensor) -> Tensor:
        turned = torch.complex(*(numbers @ alignment.matrix(tail)).chunk(2, dim=-1)) * phase
        return torch.cat([turned.real, turned.imag], dim=-1)

    return turn


def _double(parameters: _Parameters) -> _Parameters:
    return {name: value.double() for name, value in parameters.items()}


_CHANGES: dict[str, Callable[[_Parameters, _Parameters, Alignment, str, str], tuple[_Parameters, _Parameters]]] = {
    "transe": _change_translation,
    "transr": _change_projected,
    "transra": _change_anchored,
    "distmult": _change_diagonal,
    "complex": _change_complex,
    "rotate": _change_angle,
}
