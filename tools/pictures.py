"""Draw the picture of the introduction: one symmetry, conserved and broken.

Usage: python -m tools.pictures
"""

import matplotlib.pyplot as plt
import numpy as np

from symlearn.plotting import DATA, PALETTE, SIMULATION, THEORY, use_book_style
from tools.repository import ROOT

STEPS, LR, DECAY, BATCH, NOISE = 120_000, 0.004, 0.1, 2, 1.0


def gradient_noise(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Moments E[x^2], E[xy] of each step's batch, for targets y = x + noise; the population's without noise."""
    if kind != "noise":
        return np.ones(STEPS), np.ones(STEPS)
    x = rng.standard_normal((STEPS, BATCH))
    y = x + NOISE * rng.standard_normal((STEPS, BATCH))
    return (x**2).mean(1), (x * y).mean(1)


def descend(u: float, w: float, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Gradient descent on (uw x - y)^2 from one start; shape (steps + 1, 2)."""
    path = np.empty((STEPS + 1, 2))
    path[0] = u, w
    decay = DECAY if kind == "decay" else 0.0
    for step, (xx, xy) in enumerate(zip(*gradient_noise(kind, rng), strict=True)):
        residual = 2 * (u * w * xx - xy)
        u, w = u - LR * (residual * w + decay * u), w - LR * (residual * u + decay * w)
        path[step + 1] = u, w
    return path


def idea() -> plt.Figure:
    """Three panels: gradient flow keeps u^2 - w^2, weight decay and gradient noise drive it to zero."""
    use_book_style()
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.7), sharex=True, sharey=True)
    panels = (
        ("flow", r"Gradient flow conserves $u^2-w^2$", THEORY),
        ("decay", "Weight decay takes it away", DATA),
        ("noise", "So does gradient noise", SIMULATION),
    )
    grid = np.linspace(0.02, 2.6, 200)
    starts = [(2.4, 0.15), (1.9, 0.3), (1.3, 0.25), (0.25, 1.3), (0.3, 1.9), (0.15, 2.4)]
    for ax, (kind, title, color) in zip(axes, panels, strict=True):
        ax.plot(grid, 1 / grid, color=PALETTE[5], lw=5, alpha=0.25, solid_capstyle="butt")
        ax.plot([0, 2.6], [0, 2.6], color=PALETTE[5], lw=0.8, ls=":")
        for number, start in enumerate(starts):
            path = descend(*start, kind, np.random.default_rng(number))
            every = 80 if kind == "noise" else 1
            ax.plot(*path[:1000].T, *path[1000::every].T, color=color, lw=0.7 if kind == "noise" else 1.3)
            ax.plot(*path[0], "o", color=color, ms=3.5)
            ax.plot(*path[-1], "D", color=color, ms=5, mec="white", mew=0.8, zorder=4)
        ax.set(xlim=(0, 2.6), ylim=(0, 2.6), title=title, xlabel="first weight $u$", aspect="equal", xticks=[0, 1, 2])
    axes[0].set(ylabel="second weight $w$", yticks=[0, 1, 2])
    axes[0].annotate("solutions\n$uw=1$", (0.47, 2.1), (0.85, 2.1), color=PALETTE[5], fontsize=9, va="center")
    axes[1].annotate("balance $u=w$", (1.6, 1.6), (1.0, 2.2), color=PALETTE[5], fontsize=9)
    return figure


if __name__ == "__main__":
    idea().savefig(ROOT / "assets" / "idea.png", dpi=160, bbox_inches="tight", metadata={"Software": None})
