"""The hyperbolic rotation of the two layers of a solvable model: its rapidity at any time, without cancellation.

Coefficients, roots and times enter as logarithms, because weights of 1e-9 start 1e-18 away from a saddle and infinite
times end exactly at a fixed point.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import exprel


@dataclass(frozen=True)
class Modes:
    """The two modes of a solvable model at time 0, and what drives them; all of the batch shape, p and q (..., d)."""

    p: np.ndarray
    q: np.ndarray
    gain: np.ndarray  # the output is gain * (|p|^2 - |q|^2)
    output: np.ndarray
    gap: np.ndarray  # output minus target
    area: np.ndarray
    imbalance: np.ndarray
    x2: np.ndarray
    xy: np.ndarray

    @classmethod
    def of(cls, w0: np.ndarray, u0: np.ndarray, *others: np.ndarray) -> Modes:
        """The modes of a model, from weights (..., d), learning rates, scale and moments of the batch shape."""
        lr_in, lr_out, scale, x2, xy = others
        u, w = u0 / np.sqrt(lr_out)[..., None], w0 / np.sqrt(lr_in)[..., None]
        p, q = (u + w) / 2, (u - w) / 2
        gain = scale * np.sqrt(lr_out) * np.sqrt(lr_in)
        output = scale * (u0 * w0).sum(-1)
        size_u, size_w = norm(u), norm(w)
        return cls(
            p=p,
            q=q,
            gain=gain,
            output=output,
            gap=output - xy / x2,
            area=np.where(p.any(-1) & q.any(-1), scale * area(u0, w0), 0.0),
            imbalance=gain / 2 * (size_u - size_w) * (size_u + size_w),
            x2=x2,
            xy=xy,
        )

    @property
    def direction(self) -> np.ndarray:
        """1 where p grows and q falls, -1 where it is the other way round."""
        return np.where(self.gap < 0, 1.0, -1.0)

    @cached_property
    def growing(self) -> np.ndarray:
        """The mode that grows, (..., d)."""
        return np.where(self.gap[..., None] < 0, self.p, self.q)

    @cached_property
    def size_growing(self) -> np.ndarray:
        """Norm of the mode that grows."""
        return norm(self.growing)

    @cached_property
    def unit_growing(self) -> np.ndarray:
        """The mode that grows, of length 1, or 0 if there is none; (..., d)."""
        return self.growing / np.where(self.size_growing > 0, self.size_growing, 1.0)[..., None]

    @cached_property
    def size_falling(self) -> np.ndarray:
        """Norm of the mode that falls."""
        return norm(np.where(self.gap[..., None] < 0, self.q, self.p))

    def rotation(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r"""Half of the modulus of the rapidity s, and what is left of the distance from the target, (..., T).

        Where p grows: with h = 2D / (e^{Dt} - 1), e^{2s} = (n + h) / (m + h) for n = D + B + 2C and m = D - B + 2A, and
        the distance has fallen by h (h + 2D) / ((n + h) (m + h)). Where q grows A, C and B, -B change places. All
        summands are positive and kept as logarithms.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            common = np.log(2 * self.x2) + 2 * np.log(self.gain)
            log_a, log_c = common + 2 * np.log(self.size_growing), common + 2 * np.log(self.size_falling)
            b = 2 * self.gain * self.xy * self.direction
            d = np.hypot(b, 2 * np.exp((log_a + log_c) / 2))
            log_n, log_m = _log_root(log_a, log_c, b, d)[..., None], _log_root(log_c, log_a, -b, d)[..., None]
            log_h, log_2d = _log_decay(d[..., None], t), np.log(2 * d)[..., None]
            push = np.log(4 * self.gain * self.x2 * np.abs(self.gap))[..., None]
        smaller, larger = np.logaddexp(log_m, log_h), np.logaddexp(log_n, log_h)
        residual = np.exp((np.logaddexp(log_h, log_2d) - larger) + (log_h - smaller))
        # Only a mode that is exactly 0 grows beyond, and a finite factor keeps it so.
        return np.minimum(np.logaddexp(0, push - smaller) / 4, 700), residual


def _log_root(log_a: np.ndarray, log_c: np.ndarray, b: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Logarithm of D + B + 2C; for a negative B as 2C (1 + 2A / (D - B)), which does not cancel."""
    total = np.log(d + np.abs(b))
    positive = np.logaddexp(total, np.log(2) + log_c)
    negative = np.log(2) + log_c + np.logaddexp(0, np.log(2) + log_a - total)
    return np.where(b >= 0, positive, negative)


def _log_decay(d: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Logarithm of 2D / (e^{Dt} - 1), or 2 / t for D = 0; instead of infinite, very large."""
    finite = np.where(np.isinf(t), 1.0, t)
    with np.errstate(over="ignore"):
        exponent = np.minimum(d * finite, 1e300)
    value = np.log(2) - np.log(finite) - exponent - np.log(exprel(-exponent))
    return np.clip(np.where(np.isinf(t), -np.inf, value), -1e9, 1e4)


def mix(first: np.ndarray, a: np.ndarray, second: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The vectors first (..., d) times a (..., T) plus second times b, (..., T, d), in one pass."""
    return np.stack([a, b], -1) @ np.stack([first, second], -2)


def least_rounding(*sums: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Of several pairs with the same sum, that of the pair whose larger part is smallest, and of the first if close."""
    totals = np.stack(np.broadcast_arrays(*(one + other for one, other in sums)))
    sizes = np.stack(np.broadcast_arrays(*(np.maximum(np.abs(one), np.abs(other)) for one, other in sums)))
    sizes[0] /= 8
    return np.take_along_axis(totals, sizes.argmin(0)[None], 0)[0]


def norm(x: np.ndarray) -> np.ndarray:
    """Norm along the last axis, without underflow."""
    largest = np.abs(x).max(-1)
    unit = x / np.where(largest > 0, largest, 1.0)[..., None]
    return largest * np.sqrt((unit**2).sum(-1))


def area(u: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Area of the parallelogram of two vectors, from the part of one that is orthogonal to the other."""
    size = norm(u)
    unit = u / np.where(size > 0, size, 1.0)[..., None]
    rest = w - (w * unit).sum(-1, keepdims=True) * unit
    return size * norm(rest)


def angle_share(before: np.ndarray, after: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Share of the cosine in the change of log |f|; where f does not change, that of an infinitesimal change."""
    first, last = np.hypot(before, area), np.hypot(after, area)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        longer = _log_ratio(last, first, (after - before) * ((after + before) / (first + last)))
        norm_share = longer / _log_ratio(np.abs(after), np.abs(before), np.abs(after) - np.abs(before))
        norm_share = np.where(np.abs(after) == np.abs(before), (before / first) ** 2, norm_share)
    share = np.where((before == 0) | (after == 0), 1.0, np.clip(1 - norm_share, 0.0, 1.0))
    # A layer that vanishes at first has no angle, and then has one.
    return np.where((area > 0) | ((before == 0) & (after != 0)), share, 0.0)


def _log_ratio(new: np.ndarray, old: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Logarithm of the ratio of two positive numbers, of whose difference more digits are known."""
    return np.where(np.abs(change) < old / 2, np.log1p(change / old), np.log(new) - np.log(old))
