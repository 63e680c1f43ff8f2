r"""SGD of many diagonal linear networks :math:`f(x)=x\sum_i\prod_kw_{ki}` at once, exactly, step by step.

A step needs only the batch means of :math:`x^2` and :math:`xy`. At depth 1 a step shifts all weights alike; at depth 2
it multiplies all :math:`u_i+w_i` by one factor and all :math:`u_i-w_i` by another; and layers that start equal stay
equal. In these cases one or two numbers per chain, or one layer, are the whole state.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from symlearn._subnormals import without_subnormals

_CHAINS_PER_BLOCK = 4096
_DRAWS_PER_BLOCK = 1 << 17
_LARGEST_BLOCK = 1 << 22


class Steps(NamedTuple):
    """What a chain does: tables (N,) of ``2 lr x**2 / S`` and ``2 lr x y / S``, the factor of weight decay, counts."""

    slope: np.ndarray
    drive: np.ndarray
    decay: float
    batch_size: int
    n_steps: int


class _State(Protocol):
    def product(self) -> np.ndarray: ...

    def step(self, slope: np.ndarray, drive: np.ndarray) -> None: ...

    def weights(self) -> np.ndarray: ...


def run_chains(init: np.ndarray, steps: Steps, records: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (chains, depth, width) after the last step, and products (records, chains) after the given ones.

    Each block of chains has its own stream of random numbers, so that the result does not depend on what else runs.
    """
    n_chains = len(init)
    weights, products = np.empty(init.shape), np.empty((records.size, n_chains))
    size = max(1, min(_CHAINS_PER_BLOCK, _LARGEST_BLOCK // steps.batch_size))
    with without_subnormals(), np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for index, first in enumerate(range(0, n_chains, size)):
            block = slice(first, min(first + size, n_chains))
            rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, index])))
            state = _state(np.ascontiguousarray(init[block].transpose(1, 2, 0)), steps.decay)
            _advance(state, steps, records, rng, products[:, block])
            weights[block] = state.weights().transpose(2, 0, 1)
    return weights, products


def _advance(state: _State, steps: Steps, records: np.ndarray, rng: np.random.Generator, products: np.ndarray) -> None:
    """All steps of one block; products are written to the rows of ``products``."""
    size, n_samples = steps.batch_size, steps.slope.size
    n_drawn = max(1, _DRAWS_PER_BLOCK // (size * products.shape[1]))
    values = np.empty((2, n_drawn, size, products.shape[1]))
    sums = values[:, :, 0] if size == 1 else np.empty((2, n_drawn, products.shape[1]))
    recorded = 0
    for first in range(0, steps.n_steps, n_drawn):
        n_here = min(n_drawn, steps.n_steps - first)
        drawn = rng.integers(n_samples, size=(n_here, size, products.shape[1]))
        for table, value, total in zip((steps.slope, steps.drive), values[:, :n_here], sums[:, :n_here], strict=True):
            np.take(table, drawn, out=value, mode="clip")  # any other mode copies
            if size > 1:
                value.sum(1, out=total)
        for step in range(n_here):
            state.step(sums[0, step], sums[1, step])
            if first + step + 1 == records[recorded]:
                products[recorded] = state.product()
                recorded += 1


class _One:
    """Depth 1: the sum v of the weights, which all move alike."""

    def __init__(self, init: np.ndarray, decay: float) -> None:
        self._init, self._v, self._decay = init, init.sum((0, 1)), decay
        self._decayed = 1.0

    def product(self) -> np.ndarray:
        return self._v

    def step(self, slope: np.ndarray, drive: np.ndarray) -> None:
        slope *= self._v
        slope -= drive
        slope *= self._init.shape[1]
        if self._decay != 1:
            self._v *= self._decay
            self._decayed *= self._decay
        self._v -= slope

    def weights(self) -> np.ndarray:
        decayed = self._decayed * self._init
        return decayed + (self._v - decayed.sum((0, 1))) / self._init.shape[1]


class _Two:
    """Depth 2: the norms p and q of (u + w) / 2 and (u - w) / 2, so that v = p**2 - q**2."""

    def __init__(self, init: np.ndarray, decay: float) -> None:
        self._sides = (init[0] + init[1]) / 2, (init[0] - init[1]) / 2
        self._start = [np.sqrt((side**2).sum(0)) for side in self._sides]
        self._p, self._q = (norm.copy() for norm in self._start)
        self._balanced = not self._q.any()
        self._decay, self._buffers = decay, np.empty((2, self._p.size))

    def product(self) -> np.ndarray:
        return self._p**2 - self._q**2

    def step(self, slope: np.ndarray, drive: np.ndarray) -> None:
        v, square = self._buffers
        np.multiply(self._p, self._p, out=v)
        if not self._balanced:
            np.multiply(self._q, self._q, out=square)
            v -= square
        slope *= v
        slope -= drive
        self._p *= np.subtract(self._decay, slope, out=v)
        if not self._balanced:
            slope += self._decay
            self._q *= slope

    def weights(self) -> np.ndarray:
        p, q = (
            side * np.divide(norm, start, where=start > 0, out=np.zeros_like(start))
            for side, norm, start in zip(self._sides, (self._p, self._q), self._start, strict=True)
        )
        return np.stack([p + q, p - q])


class _Tied:
    """Depth 3 or more with layers that are all equal, (width, chains) each."""

    def __init__(self, init: np.ndarray, decay: float) -> None:
        self._depth, self._weights, self._decay = len(init), init[0].copy(), decay
        self._others = np.empty_like(self._weights)

    def product(self) -> np.ndarray:
        return (self._weights**self._depth).sum(0)

    def step(self, slope: np.ndarray, drive: np.ndarray) -> None:
        weights, others = self._weights, self._others
        np.multiply(weights, weights, out=others)
        for _ in range(self._depth - 3):
            others *= weights
        slope *= np.einsum("ic,ic->c", others, weights)
        slope -= drive
        others *= slope
        if self._decay != 1:
            weights *= self._decay
        weights -= others

    def weights(self) -> np.ndarray:
        return np.broadcast_to(self._weights, (self._depth, *self._weights.shape))


class _Deep:
    """Depth 3 or more in general, (depth, width, chains)."""

    def __init__(self, init: np.ndarray, decay: float) -> None:
        self._weights, self._decay = init.copy(), decay
        self._others, self._run = np.empty_like(init), np.empty_like(init[0])

    def product(self) -> np.ndarray:
        return self._weights.prod(0).sum(0)

    def step(self, slope: np.ndarray, drive: np.ndarray) -> None:
        weights, others, run = self._weights, self._others, self._run
        # The products of all other layers, from both ends: dividing by a weight would fail at 0.
        others[1] = weights[0]
        for k in range(2, len(weights)):
            np.multiply(others[k - 1], weights[k - 1], out=others[k])
        run[:] = weights[-1]
        for k in range(len(weights) - 2, 0, -1):
            others[k] *= run
            run *= weights[k]
        others[0] = run
        slope *= np.einsum("ic,ic->c", run, weights[0])
        slope -= drive
        others *= slope
        if self._decay != 1:
            weights *= self._decay
        weights -= others

    def weights(self) -> np.ndarray:
        return self._weights


def _state(init: np.ndarray, decay: float) -> _State:
    """The smallest state for weights (depth, width, chains)."""
    if len(init) <= 2:
        return (_One, _Two)[len(init) - 1](init, decay)
    return (_Tied if (init == init[:1]).all() else _Deep)(init, decay)
