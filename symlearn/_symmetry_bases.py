"""The bases of the symmetries that act on named parameters; ``symlearn.symmetry`` has them under their public names.

A symmetry moves parameters by ``act``; a continuous one has a generator and a charge too (chapter
:doc:`/chapters/law_of_balance`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from symlearn._group_actions import relative_change


class Symmetry:
    """Base of the symmetries that act on named parameters.

    ``params`` is a ``dict[str, Tensor]`` with names as in ``model.named_parameters()``, or anything of the same names
    and shapes, such as gradients. Entries that a symmetry does not touch come back as the same tensor objects; the
    touched ones keep their dtype and device, and the result is differentiable. Everything works under
    ``torch.func.vmap``.

    Attributes
    ----------
    names : tuple of str
        The parameters that the symmetry touches.
    """

    names: tuple[str, ...]
    _shows_names = False

    def act(self, params: Mapping[str, Tensor], amount: Any) -> dict[str, Tensor]:
        """Parameters moved along the orbit; ``amount`` as the class says."""
        raise NotImplementedError

    def violation(self, loss: Callable[[Any], Any], params: Mapping[str, Tensor], amount: Any = 0.1) -> float:
        """How far the loss is from having this symmetry, relative to the loss.

        With ``a = loss(params)`` and ``b = loss(act(params, amount))`` it is ``max|b - a| / max(max|a|, max|b|)`` over
        all entries; 0.0 if both are 0. About 1e-16 for an exact symmetry in float64.

        Parameters
        ----------
        loss : callable
            ``loss(params)`` with the data closed over, a scalar or a tensor of any shape. Return one value per sample:
            a mean over samples can hide a broken symmetry.
        params : dict of Tensor
            Where to test.
        amount : optional
            How far to move.

        Returns
        -------
        float
            Relative change of the loss. No graph is built.

        Raises
        ------
        TypeError
            If ``loss`` is not callable or returns something other than numbers.
        ValueError
            If a loss is not finite, empty, or changes its shape.
        """
        return relative_change(loss, params, lambda: self.act(params, amount))

    def __repr__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if name != "names" or self._shows_names}
        arguments = (f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({', '.join(arguments)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), tuple(vars(self).values())))


class ContinuousSymmetry(Symmetry):
    r"""Base of the symmetries :math:`\theta\to e^{\mu A}\theta` with a symmetric generator :math:`A`."""

    def generator_product(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r""":math:`A\theta`, for the touched names only: the derivative of `act` at amount 0."""
        raise NotImplementedError

    def charge(self, params: Mapping[str, Tensor]) -> Tensor:
        r"""Noether charge :math:`\theta^\top A\theta`, in squared units of the parameters, without a factor 1/2."""
        raise NotImplementedError

    def _signs(self) -> dict[str, int]:
        raise NotImplementedError
