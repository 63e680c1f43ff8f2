r"""The lasso from its factorised form: blocks of features, exact on each, with a duality gap for the whole.

In units of the first block (X and y scaled to order 1) a block with Gram matrix Q and correlations q is solved in three
stages. Alternating exact steps in the two factors find a support and its signs. A semismooth Newton method then solves
for that support and repairs it. Should it cycle, a Newton method with an exact line search finishes, one feature at a
time where needed. Features that violate the optimality conditions join the block until the gap is closed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.linalg.lapack import dposv, dpotrs, dpstrf

from symlearn._checks import invalid

FIRST_BLOCK = 50
# A multiplier this close to alpha counts as one of the support while the factors alternate.
ON_SUPPORT = 0.97
# Violations that rounding explains, relative to alpha and to the largest correlation.
SLACK, ROUNDING = 1e-11, 1e-15
# A Newton step that makes the L1 norm this many times larger than at the start has gone astray.
DIVERGED = 30
# Newton steps admit every violation at first; when they fail, those of at least these shares of the worst.
SHARES = (0.5, 0.8)
# A column whose square, less its projection on the others, is this small relative to itself depends on them.
DEPENDENT = 1e-13


class Solution(NamedTuple):
    """Coefficients and what is known about them; ``gap`` is absolute, ``bound`` what it had to reach."""

    coef: np.ndarray
    intercept: float
    gap: float
    bound: float
    n_rounds: int

    @property
    def converged(self) -> bool:
        return self.gap <= self.bound


class Block(NamedTuple):
    """Some features of the problem: ``rows`` (m, n) are their centred columns, ``gram`` is rows rows' / n."""

    features: np.ndarray
    rows: np.ndarray
    gram: np.ndarray
    correlations: np.ndarray


class Fit(NamedTuple):
    """Coefficients (m,) of a block, its remaining correlations (m,) with the residual, and whether they are optimal."""

    coef: np.ndarray
    correlations: np.ndarray
    optimal: bool


def solve(X: Any, y: np.ndarray, alpha: float, *, intercept: bool, tol: float, max_iter: int) -> Solution:
    """Minimise |y - X w - b|^2 / 2n + alpha |w|_1 for X dense or sparse (n, p)."""
    with np.errstate(all="ignore"):
        n = len(y)
        y_mean = float(y.mean()) if intercept else 0.0
        target = y - y_mean
        y_unit = float(np.abs(target).max())
        if not np.isfinite(y_unit):
            raise invalid("y", "of magnitudes within the range of float64", "an overflow")
        target = target / (y_unit or 1.0)
        if intercept:
            target -= target.mean()  # what rounding has left
        x_mean: np.ndarray | None = X.T @ np.full(n, 1 / n) if intercept else None
        coef, gap, n_rounds = _solve_centred(X, x_mean, target, alpha / (y_unit or 1.0), tol, max_iter)
        coef = coef * y_unit
        gap *= y_unit * y_unit
        bound = tol * float(target @ target) / n * y_unit * y_unit
        constant = y_mean - (0.0 if x_mean is None else float(x_mean @ coef))
        if not (np.isfinite(coef).all() and np.isfinite(constant) and np.isfinite(gap)):
            raise invalid("X and y", "of magnitudes whose products are within the range of float64", "an overflow")
    return Solution(coef, constant, gap, bound, n_rounds)


def kkt_violation(X: Any, y: np.ndarray, coef: np.ndarray, alpha: float) -> float:
    """Largest violation of the optimality conditions, without an intercept."""
    with np.errstate(all="ignore"):
        correlations = X.T @ (y - X @ coef) / len(y)
    if not np.isfinite(correlations).all():
        raise invalid("X, y and coef", "of magnitudes whose products are within the range of float64", "an overflow")
    on, off = coef != 0, coef == 0
    violations = np.abs(correlations[on] - alpha * np.sign(coef[on]))
    return float(max(violations.max(initial=0.0), np.abs(correlations[off]).max(initial=alpha) - alpha))


def _solve_centred(
    X: Any, x_mean: np.ndarray | None, y: np.ndarray, alpha: float, tol: float, max_iter: int
) -> tuple[np.ndarray, float, int]:
    """Coefficients (p,), duality gap and rounds, for centred y of order 1."""
    n, p = X.shape
    total = X.T @ y / n
    if x_mean is not None:
        total -= x_mean * y.mean()
    if np.abs(total).max() <= alpha:
        return np.zeros(p), 0.0, 1
    first = _largest(np.abs(total), 0.6 * alpha, FIRST_BLOCK)
    rows = _rows(X, x_mean, first)
    x_unit = float(np.abs(rows).max())
    alpha /= x_unit
    block = Block(np.empty(0, dtype=np.intp), np.empty((0, n)), np.empty((0, 0)), np.empty(0))
    block = _extended(block, first, rows / x_unit, y)
    fit = _solve_block(block, alpha, _start_by_factors(block, alpha), n)
    for n_rounds in range(1, max_iter + 1):
        support = np.flatnonzero(fit.coef)
        residual = y - fit.coef[support] @ block.rows[support]
        correlations = X.T @ residual / (n * x_unit)
        if x_mean is not None:
            correlations -= x_mean * (residual.mean() / x_unit)
            correlations[block.features] = block.rows @ residual / n
        gap = _duality_gap(y, residual, fit.coef, correlations, alpha)
        outside = np.abs(correlations)
        outside[block.features] = 0
        new = _largest(outside, alpha * (1 + SLACK), max(FIRST_BLOCK, len(support)))
        if gap <= tol * float(y @ y) / n or n_rounds == max_iter or not len(new):
            break
        block = _extended(block, new, _rows(X, x_mean, new) / x_unit, y)
        start = np.concatenate([fit.coef, np.zeros(len(new))])
        fit = _solve_block(block, alpha, start, n)
    coef = np.zeros(p)
    coef[block.features] = fit.coef / x_unit
    return coef, gap, n_rounds


def _largest(values: np.ndarray, above: float, count: int) -> np.ndarray:
    """Indices of the ``count`` largest values, without those that are not above a bound."""
    if count < len(values):
        chosen = np.argpartition(values, -count)[-count:]
        return chosen[values[chosen] > above]
    return np.flatnonzero(values > above)


def _rows(X: Any, x_mean: np.ndarray | None, features: np.ndarray) -> np.ndarray:
    """Centred columns of X as the rows of an array (m, n)."""
    rows = np.take(X.T, features, axis=0) if isinstance(X, np.ndarray) else X[:, features].T.toarray()
    if x_mean is not None:
        rows -= x_mean[features, None]
    return rows


def _extended(block: Block, features: np.ndarray, rows: np.ndarray, y: np.ndarray) -> Block:
    n, m = rows.shape[1], len(block.features)
    gram = np.empty((m + len(features),) * 2)
    gram[:m, :m] = block.gram
    gram[m:, m:] = rows @ rows.T / n
    gram[m:, :m] = rows @ block.rows.T / n
    gram[:m, m:] = gram[m:, :m].T
    return Block(
        np.concatenate([block.features, features]),
        np.concatenate([block.rows, rows]) if m else rows,
        gram,
        np.concatenate([block.correlations, rows @ y / n]),
    )


def _duality_gap(y: np.ndarray, residual: np.ndarray, coef: np.ndarray, c: np.ndarray, alpha: float) -> float:
    """Objective minus the dual objective at the residual, scaled until it is feasible."""
    n = len(y)
    largest = float(np.abs(c).max())
    scale = alpha / largest if largest > alpha else 1.0
    squared = float(residual @ residual)
    primal = squared / (2 * n) + alpha * float(np.abs(coef).sum())
    dual = scale / n * (float(residual @ y) - scale * squared / 2)
    return max(primal - dual, 0.0)


def _start_by_factors(block: Block, alpha: float, max_steps: int = 25) -> np.ndarray:
    """Coefficients near the optimum: the best u for given v, then both balanced, until the support is stable."""
    gram, q = block.gram, block.correlations
    sizes = np.full(len(q), 1e-2 * np.abs(q).max() / gram.diagonal().mean())  # v squared
    support, stable = np.zeros(len(q), dtype=bool), 0
    for _ in range(max_steps):
        v = np.sqrt(sizes)
        system = v[:, None] * gram * v
        system.flat[:: len(v) + 1] += alpha
        _, u, failed = dposv(system.T, v * q, lower=1, overwrite_a=1)
        if failed or not np.isfinite(u).all():
            return np.zeros(len(q))
        sizes = np.abs(u * v)
        now = np.abs(u) > ON_SUPPORT * v
        stable = stable + 1 if (now == support).all() else 0
        support = now
        if stable == 2:
            break
    return np.where(support, u * v, 0)


def _solve_block(block: Block, alpha: float, start: np.ndarray, n_samples: int) -> Fit:
    fit = _semismooth_newton(block, alpha, start, min(len(start), n_samples))
    if fit.optimal:
        return fit
    better = _objective(block, alpha, fit.coef) < _objective(block, alpha, start)
    return _descend(block, alpha, fit.coef if better else start)


def _slack(block: Block, alpha: float) -> float:
    return SLACK * alpha + ROUNDING * float(np.abs(block.correlations).max())


def _objective(block: Block, alpha: float, coef: np.ndarray) -> float:
    value = float(coef @ (block.gram @ coef / 2 - block.correlations) + alpha * np.abs(coef).sum())
    return value if np.isfinite(value) else np.inf


def _semismooth_newton(block: Block, alpha: float, start: np.ndarray, most: int, max_steps: int = 40) -> Fit:
    """Solve for given signs, drop what came out with the wrong one, add what violates its bound, and repeat.

    When a set of signs returns or the coefficients explode it admits fewer features at once; then it gives up.
    """
    gram, q = block.gram, block.correlations
    slack = _slack(block, alpha)
    seen: set[bytes] = set()
    shares = iter(SHARES)
    share, coef, signs = 0.0, np.zeros(len(q)), np.sign(start)
    largest = DIVERGED * float(np.abs(start).sum())
    for _ in range(max_steps):
        support = np.flatnonzero(signs)
        signs_on = signs[support]
        found = _solve_signs(gram, q, alpha, support, signs_on)
        if found is None or np.abs(found[0]).sum() > largest:
            share = next(shares, np.inf)
            if share == np.inf:
                break
            signs = np.sign(start)
            continue
        values, c = found
        kept = values * signs_on > 0
        violation = np.abs(c) - alpha
        violation[support] = 0
        worst = float(violation.max(initial=0.0))
        coef = np.zeros(len(q))
        coef[support] = np.where(kept, values, 0)
        if kept.all() and worst <= slack:
            return Fit(coef, c, True)
        signs[support[~kept]] = 0
        if worst > slack:
            new = _largest(violation, max(share * worst * (1 - 1e-15), slack), max(1, most - int(kept.sum())))
            signs[new] = np.sign(c[new])
        key = signs.tobytes()
        if key in seen:
            share = next(shares, np.inf)
            if share == np.inf:
                break
        seen.add(key)
    return Fit(coef, q - gram @ coef, False)


def _solve_signs(
    gram: np.ndarray, q: np.ndarray, alpha: float, support: np.ndarray, signs: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Minimiser (k,) for fixed support and signs, and correlations (m,); None if the columns depend on each other."""
    if not len(support):
        return np.empty(0), q.copy()
    rows = gram[support]
    system = rows[:, support]
    factor, values, failed = dposv(system.T, q[support] - alpha * signs, lower=1)
    if failed or (factor.diagonal() ** 2 <= DEPENDENT * system.diagonal()).any():
        return None
    c = q - values @ rows
    error = c[support] - alpha * signs
    if np.abs(error).max() > 1e-13 * alpha:
        values = values + dpotrs(factor, error, lower=1)[0]
        c = q - values @ rows
    return (values, c) if np.isfinite(c).all() else None


def _descend(block: Block, alpha: float, coef: np.ndarray) -> Fit:
    """Feature-sign search with exact line searches: every step lowers the objective."""
    gram, q = block.gram, block.correlations
    slack = _slack(block, alpha)
    coef = _independent(gram, coef)
    active = _Support(gram, np.flatnonzero(coef))
    for _ in range(10 * len(q) + 100):
        features = active.features
        old, signs = coef[features], np.sign(coef[features])
        target, c = active.solve(q, alpha * signs)
        worst = -1
        if (target * signs > 0).all():
            coef[features] = target
            violation = np.abs(c) - alpha
            violation[features] = 0
            worst = int(violation.argmax())
            if violation[worst] <= slack:
                return _semismooth_newton(block, alpha, coef, len(features))
            answer, curvature = active.project(worst)
            features, signs = np.append(features, worst), np.append(signs, np.sign(c[worst]))
            old, direction, slope = coef[features], signs[-1] * np.append(-answer, 1.0), -float(violation[worst])
        else:
            direction = target - old
            curvature = float(direction @ (active.remaining(q, old)[features] - alpha * signs))
            slope = -curvature
        step = _line_search(old, direction, signs, alpha, slope, curvature)
        if not 0 < step < np.inf:
            break
        new = old + step * direction
        new[np.abs(new) <= 1e-14 * np.abs(step * direction)] = 0
        coef[features] = new
        active.remove(np.flatnonzero(new[: active.size] == 0))
        if worst >= 0 and coef[worst] != 0 and not active.add(worst):
            break
    return Fit(coef, q - gram @ coef, False)


def _independent(gram: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """Coefficients without those whose columns depend on the others."""
    support = np.flatnonzero(coef)
    reduced = np.zeros(len(coef))
    if len(support):
        system = gram[np.ix_(support, support)]
        _, order, rank, _ = dpstrf(system, tol=1e-8 * system.diagonal().max(), lower=1)
        kept = support[order[:rank] - 1]
        reduced[kept] = coef[kept]
    return reduced


def _line_search(
    old: np.ndarray, direction: np.ndarray, signs: np.ndarray, alpha: float, slope: float, curvature: float
) -> float:
    """Minimiser of the objective along a direction of descent: a parabola with kinks where a coefficient is zero."""
    kinked = direction * signs < 0
    at = -old[kinked] / direction[kinked]
    order = np.argsort(at)
    at, jumps = at[order], np.cumsum(2 * alpha * np.abs(direction[kinked][order]))
    upward = np.flatnonzero(slope + at * curvature + jumps >= 0)  # just behind each kink
    kink = int(upward[0]) if len(upward) else len(at)
    behind = slope + (float(jumps[kink - 1]) if kink else 0.0)
    smooth = -behind / curvature if curvature > 0 else np.inf
    return float(min(smooth, at[kink]) if kink < len(at) else smooth)


class _Support:
    """Features with the inverse of their Gram matrix, kept up to date by rank-one changes; their order is arbitrary."""

    def __init__(self, gram: np.ndarray, features: np.ndarray) -> None:
        m, k = len(gram), len(features)
        self.gram, self.size = gram, k
        self._features = np.empty(m, dtype=np.intp)
        self._rows = np.empty((m, m))
        self._inverse = np.empty((m, m))
        self._features[:k] = features
        self._rows[:k] = gram[features]
        if k:
            self._inverse[:k, :k] = np.linalg.pinv(gram[np.ix_(features, features)], hermitian=True)

    @property
    def features(self) -> np.ndarray:
        return self._features[: self.size].copy()

    def remaining(self, q: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Correlations (m,) with the residual of coefficients (k,)."""
        return q - values @ self._rows[: self.size]

    def solve(self, q: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (k,) whose correlations with the residual are the shift, and all correlations (m,)."""
        features, inverse = self.features, self._inverse[: self.size, : self.size]
        values = inverse @ (q[features] - shift)
        c = self.remaining(q, values)
        for _ in range(3):
            error = c[features] - shift
            if np.abs(error).max(initial=0.0) <= 1e-10 * np.abs(shift).max(initial=0.0):
                break
            values = values + inverse @ error
            c = self.remaining(q, values)
        return values, c

    def project(self, feature: int) -> tuple[np.ndarray, float]:
        """A feature's coefficients (k,) on the others, and what they leave of its square."""
        coupling = self._rows[: self.size, feature]
        answer = self._inverse[: self.size, : self.size] @ coupling
        return answer, max(0.0, float(self.gram[feature, feature] - coupling @ answer))

    def add(self, feature: int) -> bool:
        """False, and no change, if the feature depends on the others."""
        k = self.size
        answer, rest = self.project(feature)
        if rest <= DEPENDENT * self.gram[feature, feature]:
            return False
        self._inverse[:k, :k] += np.outer(answer, answer / rest)
        self._inverse[k, :k] = self._inverse[:k, k] = -answer / rest
        self._inverse[k, k] = 1 / rest
        self._features[k], self._rows[k] = feature, self.gram[feature]
        self.size += 1
        return True

    def remove(self, places: np.ndarray) -> None:
        for place in places[::-1]:  # from behind, because the last feature takes the free place
            self.size -= 1
            k, inverse = self.size, self._inverse
            for array in (self._features, self._rows, inverse, inverse.T):
                array[[place, k]] = array[[k, place]]
            inverse[:k, :k] -= np.outer(inverse[:k, k], inverse[k, :k] / inverse[k, k])
