r"""Simulation of SGD on the two-layer network :math:`f=\sum_j u_jw_j\,x` for many cells and runs at once.

With :math:`p_j=(u_j+w_j)/\sqrt2` and :math:`q_j=(u_j-w_j)/\sqrt2` a step multiplies all :math:`p_j` by one factor and
all :math:`q_j` by another, so that two numbers per run, the norms of p and q, are the whole state of any width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from symlearn._checks import invalid
from symlearn._subnormals import without_subnormals

_RUNS_PER_BLOCK = 16_384
# A multiple of every vector length: no element takes the scalar remainder of a loop, which may round differently.
_LANES = 64
_NUMBERS_PER_STEP = 1 << 24
_DRAWS_PER_BLOCK = 1 << 20
_TILE = 1 << 17
_FEW_POINTS = 8
_LARGEST_EXACT_BATCH = 256
_LARGEST_NORM = 1e6


class Cells(NamedTuple):
    """Parameters of each cell: ``x``, ``y`` (cells, K), ``weights`` (cells, K) or (1, K) if shared, others (cells,)."""

    lr: np.ndarray
    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    noise_std: np.ndarray
    weight_decay: np.ndarray


class Runs(NamedTuple):
    """How every cell is simulated."""

    batch_size: int
    n_runs: int
    n_steps: int
    init_std: float
    width: int
    saddle_tol: float
    dtype: torch.dtype
    device: torch.device


def count_outcomes(cells: Cells, runs: Runs, chunk_elements: int, seed: int) -> np.ndarray:
    """Number of runs of each cell that end as correct, incorrect, saddle, unstable: (cells, 4).

    Cells and runs are cut into blocks of about ``chunk_elements``. Each block of runs has its own stream of random
    numbers, the same for all cells, so that the result does not depend on the blocks.
    """
    outcomes = np.zeros((cells.lr.size, 4), dtype=np.int64)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        positive = (cells.weights * cells.x * cells.y).sum(1) >= 0
    fitting = _NUMBERS_PER_STEP // (cells.x.shape[1] + runs.batch_size) // _LANES * _LANES
    longest = min(_RUNS_PER_BLOCK, max(_LANES, fitting))
    with _one_thread_without_subnormals():
        for index, first in enumerate(range(0, runs.n_runs, longest)):
            n_block = min(longest, runs.n_runs - first)
            block = _Block(cells, runs, -(-n_block // _LANES) * _LANES, np.random.SeedSequence([seed, index]))
            rows = max(1, chunk_elements // block.n_lanes)
            for start in range(0, cells.lr.size, rows):
                chosen = slice(start, min(start + rows, cells.lr.size))
                p, q = block.simulate(chosen)
                outcomes[chosen] += _classify(p[:, :n_block], q[:, :n_block], positive[chosen], runs.saddle_tol)
    return outcomes


class _BatchSums:
    """Sums over the samples of each batch of ``values`` (cells, K), one for each data point."""

    def __init__(self, values: np.ndarray, edges: np.ndarray | None, runs: Runs) -> None:
        self.edges = None if edges is None else torch.from_numpy(edges).to(runs.device)
        self.same = (values == values[:, :1]).all(1)
        self.matrix = None
        if edges is None and values.shape[1] > _FEW_POINTS:
            values = _exact_in_sums(values, runs.batch_size, runs.dtype)
            self.matrix = torch.from_numpy(values).to(runs.device, _sum_dtype(runs.batch_size, runs.dtype))
        # The last value counts for every sample; each sample of another point adds a difference.
        self.base = _tensor(runs.batch_size * values[:, -1:], runs)
        self.differences = _tensor(values[:, :-1] - (values[:, -1:] if edges is None else values[:, 1:]), runs)

    def of(self, cells: slice) -> Callable[[Tensor, Tensor], object]:
        """A function that writes the sums of some cells, (cells, lanes), for a batch from `_Block._batches`."""
        base, columns = self.base[cells], _columns(self.differences[cells])
        if self.matrix is not None:
            matrix = self.matrix[cells]
            return lambda batch, out: out.copy_(matrix @ batch)
        if self.edges is None:
            return lambda batch, out: _add_columns(base, columns, batch, out)
        edges = _columns(self.edges[cells])

        def threshold(batch: Tensor, out: Tensor) -> None:
            out.copy_(base)
            for uniform in batch:
                for column, edge in zip(columns, edges, strict=True):
                    out.addcmul_(column, (uniform < edge).to(out.dtype))

        return threshold


class _Block:
    """Some runs of all cells, simulated for a slice of the cells at a time with the same random numbers."""

    def __init__(self, cells: Cells, runs: Runs, n_lanes: int, seed: np.random.SeedSequence) -> None:
        self.runs, self.n_lanes, self.seed, self.weights = runs, n_lanes, seed, cells.weights
        self.shared = len(cells.weights) == 1
        self.noisy, self.decays = bool(cells.noise_std.any()), bool(cells.weight_decay.any())
        lr, size = cells.lr[:, None], runs.batch_size
        edges = None if self.shared else np.cumsum(cells.weights, 1)[:, :-1]
        with np.errstate(over="ignore", invalid="ignore"):
            self.slope = _BatchSums(lr * cells.x**2 / size, edges, runs)
            self.drift = _BatchSums(-2 * lr * cells.x * cells.y / size, edges, runs)
            self.noise = _tensor(2 * cells.noise_std[:, None] * np.sqrt(lr / size), runs)
            self.decay = _tensor(1 - lr * cells.weight_decay[:, None], runs)
        sums = (tensor for part in (self.slope, self.drift) for tensor in (part.base, part.differences))
        for tensor in (*sums, self.noise, self.decay):
            if not bool(torch.isfinite(tensor).all()):
                raise invalid("lr", f"such that a step stays within the range of {runs.dtype}", float(lr.max()))

    def simulate(self, chosen: slice) -> tuple[Tensor, Tensor]:
        """Norms of p and q of the chosen cells after the last step, (cells, lanes) each."""
        p, q = (_tensor(start, self.runs).repeat(chosen.stop - chosen.start, 1) for start in self._initial_norms())
        rows = max(1, _TILE // self.n_lanes) if p.device.type == "cpu" else len(p)
        buffers = torch.empty(3, min(rows, len(p)), self.n_lanes, dtype=p.dtype, device=p.device)
        for batches, normals in self._batches():
            for start in range(0, len(p), rows):
                tile = slice(start, min(start + rows, len(p)))
                cells = slice(chosen.start + tile.start, chosen.start + tile.stop)
                self._advance(p[tile], q[tile], cells, batches, normals, buffers[:, : tile.stop - tile.start])
        return p, q

    def _advance(self, p: Tensor, q: Tensor, cells: slice, batches: Tensor, normals: Tensor, buffers: Tensor) -> None:
        """Several steps of a tile, which stays in the cache meanwhile; p and q change in place."""
        t, a, c = buffers
        decay, noise = self.decay[cells], self.noise[cells]
        sum_drift, sum_slope = self.drift.of(cells), self.slope.of(cells)
        same_slope = bool(self.slope.same[cells].all())
        if same_slope:
            a = self.slope.base[cells]
        for batch, normal in zip(batches, normals, strict=True):
            sum_drift(batch, c)
            if not same_slope:
                sum_slope(batch, a)
            if self.noisy:
                c.addcmul_(a.clamp_min(0).sqrt_() * noise, normal)  # rounding can leave a little less than 0
            torch.mul(p, p, out=t)
            t.addcmul_(q, q, value=-1)
            torch.addcmul(c, t, a, out=t)
            if self.decays:
                p.mul_(torch.sub(decay, t, out=c))
                q.mul_(torch.add(decay, t, out=c))
            else:
                p.addcmul_(p, t, value=-1)
                q.addcmul_(q, t)

    def _initial_norms(self) -> np.ndarray:
        """Norms of p and q, (2, 1, lanes): their squares are chi-squared variables."""
        squares = np.random.default_rng(self.seed).chisquare(float(self.runs.width), (2, 1, self.n_lanes))
        return self.runs.init_std * np.sqrt(squares)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For some steps at a time counts (steps, K, lanes) of the data points, or uniforms (steps, S, lanes) instead.

        The uniforms are to be thresholded cell by cell. The second tensor has one normal per run and step.
        """
        runs, n_points = self.runs, self.weights.shape[1]
        generator = torch.Generator(runs.device).manual_seed(int(self.seed.generate_state(1, np.uint64)[0] >> 1))
        n_drawn = max(1, min(128, _DRAWS_PER_BLOCK // (self.n_lanes * (runs.batch_size + n_points))))
        normals = torch.zeros(n_drawn, 1, self.n_lanes, dtype=runs.dtype, device=runs.device)
        for step in range(0, runs.n_steps, n_drawn):
            shape = (n_drawn, runs.batch_size, self.n_lanes)
            if self.shared:
                batches = self._counts(shape, generator)
            else:
                batches = torch.rand(shape, generator=generator, dtype=torch.float64, device=runs.device)
            if self.noisy:
                normals.normal_(generator=generator)
            yield batches[: runs.n_steps - step], normals[: runs.n_steps - step]

    def _counts(self, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """How often each of the K data points is in each batch: (steps, K, lanes)."""
        (n_steps, batch_size, n_lanes), device = shape, self.runs.device
        weights = self.weights[0]
        dtype = self.runs.dtype if self.drift.matrix is None else self.drift.matrix.dtype
        counts = torch.zeros(n_steps, weights.size, n_lanes, dtype=dtype, device=device)
        if batch_size <= 4 * (weights.size - 1):
            uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
            edges = torch.from_numpy(np.cumsum(weights)[:-1]).to(device)
            drawn = torch.bucketize(uniform, edges, right=True)
            return counts.scatter_add_(1, drawn, counts.new_ones(()).expand_as(drawn))
        left = torch.full((n_steps, n_lanes), float(batch_size), dtype=torch.float64, device=device)
        remaining = np.cumsum(weights[::-1])[::-1]
        for k in range(weights.size - 1):
            share = min(1.0, weights[k] / remaining[k]) if remaining[k] else 0.0
            drawn = torch.binomial(left, torch.full_like(left, share), generator=generator)
            counts[:, k] = drawn
            left -= drawn
        counts[:, -1] = left
        return counts


def _columns(table: Tensor) -> list[Tensor]:
    return [table[:, k : k + 1] for k in range(table.shape[1])]


def _add_columns(base: Tensor, columns: Sequence[Tensor], batch: Tensor, out: Tensor) -> None:
    """``base`` (cells, 1) plus columns (cells, 1) times counts (lanes,), into ``out`` (cells, lanes)."""
    if not columns:
        out.copy_(base)
        return
    # One addcmul with two broadcast arguments takes four times as long as these two steps.
    torch.mul(columns[0], batch[0], out=out).add_(base)
    for column, count in zip(columns[1:], batch[1:], strict=False):
        out.addcmul_(column, count)


def _sum_dtype(batch_size: int, dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if batch_size > _LARGEST_EXACT_BATCH else dtype


def _exact_in_sums(values: np.ndarray, batch_size: int, dtype: torch.dtype) -> np.ndarray:
    """Rounded so that any sum of ``batch_size`` of them is exact: then no order of summation rounds differently."""
    digits = 24 if _sum_dtype(batch_size, dtype) == torch.float32 else 53
    exponent = np.frexp(np.abs(values).max(1, keepdims=True))[1] + math.ceil(math.log2(batch_size)) - digits
    return np.ldexp(np.round(np.ldexp(values, -exponent)), exponent)


def _tensor(values: np.ndarray, runs: Runs) -> Tensor:
    return torch.from_numpy(values).to(runs.device, runs.dtype)


def _classify(p: Tensor, q: Tensor, positive: np.ndarray, saddle_tol: float) -> np.ndarray:
    size = torch.hypot(p, q).double()
    unstable = ~(size <= _LARGEST_NORM)
    saddle = ~unstable & (size < saddle_tol)
    alive = ~unstable & ~saddle
    correct = alive & ((p.abs() >= q.abs()) == torch.from_numpy(positive).to(p.device)[:, None])
    outcomes = (correct, alive & ~correct, saddle, unstable)
    return torch.stack([outcome.sum(1) for outcome in outcomes], 1).cpu().numpy()


@contextmanager
def _one_thread_without_subnormals() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with without_subnormals():
            yield
    finally:
        torch.set_num_threads(n_threads)
