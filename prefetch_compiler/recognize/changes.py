"""What code does to attention scores between the product of queries and keys and the softmax, in one form.

Scores are multiplied by constants, capped, biased and filled, in many orders; what these amount to is always a scale, a
soft cap after it, and biases and fills after that. An order that does not come to this is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from torch.fx import Node

from ..errors import Refused
from .axes import Dims

# What a filled-in constant must be, at most, to be taken for hiding a key: softmax then gives it 0 next to any score
# that attention produces.
HIDES = -1e4


@dataclass(frozen=True)
class Bias:
    """``factor * tensor`` is added. ``dims`` are those of the scores where it is; the tensor broadcasts to them."""

    tensor: Node
    dims: Dims
    factor: float = 1.0


@dataclass(frozen=True)
class Fill:
    """Scores are ``value`` where ``condition`` is ``where``."""

    condition: Node
    dims: Dims
    where: bool
    value: float


@dataclass(frozen=True)
class Factor:
    """Scores are multiplied, or divided, by a tensor that does not differ between keys. ``dims`` as in Bias."""

    tensor: Node
    dims: Dims
    divides: bool


Step = Callable[["Changes"], None]


@dataclass(kw_only=True)
class Changes:
    """``cap(scale * factors * product) + terms``, where ``cap(x) = softcap * tanh(x / softcap)``.

    Attributes:
        terms: in the order in which they are applied.
    """

    scale: float = 1.0
    factors: list[Factor] = field(default_factory=list)
    softcap: float | None = None
    terms: list[Bias | Fill] = field(default_factory=list)

    def follow(self, steps: Iterable[Step]) -> None:
        """Apply steps in the order in which code takes them.

        Raises:
            Refused: they come to no such form, or a fill hides nothing.
        """
        for step in steps:
            step(self)
        _require_hiding(self.terms)
        if self.softcap is not None:
            self.softcap = abs(self.softcap)  # tanh is odd: the sign of a cap makes no difference


def scale(scores: Changes, factor: float) -> None:
    if scores.softcap is not None:
        if factor == 0:
            raise Refused("capped scores are multiplied by 0")
        # factor * tanh(x) is cap * tanh(factor * x / cap) with a cap of factor.
        scores.softcap *= factor
    scores.scale *= factor
    if scores.terms and factor <= 0:
        raise Refused("biased scores are multiplied by a number that is not positive")
    scores.terms = [scaled_term(term, factor) for term in scores.terms]


def scaled_term(term: Bias | Fill, factor: float) -> Bias | Fill:
    if isinstance(term, Bias):
        return replace(term, factor=term.factor * factor)
    return replace(term, value=term.value * factor)


def multiplies(factor: Factor) -> Step:
    def apply(scores: Changes) -> None:
        if scores.softcap is not None or scores.terms:
            raise Refused("capped or biased scores are multiplied by a tensor")
        scores.factors.append(factor)

    return apply


def cap(scores: Changes) -> None:
    if scores.softcap is not None:
        raise Refused("the scores are capped twice")
    if scores.terms:
        raise Refused("a bias or mask is applied before soft capping")
    # tanh(scale * product) is 1 * tanh(scale * product / 1).
    scores.softcap = 1.0


def adds(bias: Bias) -> Step:
    return lambda scores: scores.terms.append(bias)


def fills(fill: Fill) -> Step:
    return lambda scores: scores.terms.append(fill)


def _require_hiding(terms: Iterable[Bias | Fill]) -> None:
    for term in terms:
        if isinstance(term, Fill) and not term.value <= HIDES:
            raise Refused(f"scores are filled with {term.value:g}; only -inf and {HIDES:g} or less hide a key")
