"""How symmetry, noise, regularisation and data shape what networks learn.

The library of the book *Symmetry in Learning*: one module per result, and the ground floor that they share.
Submodules load on first use, so that ``import symlearn`` costs next to nothing and needs neither torch nor matplotlib.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

__all__ = [
    "anisotropic_ridge",
    "audit",
    "balanced_coding",
    "canonical_representation",
    "claims",
    "datasets",
    "direct_pred",
    "explorer",
    "feature_learning",
    "gradients",
    "kernel_learning",
    "law_of_balance",
    "learning_circuit",
    "learning_rules",
    "lyapunov",
    "mirror_symmetry",
    "models",
    "noise_equilibrium",
    "plotting",
    "probabilistic_stability",
    "pruning",
    "spred",
    "stepwise_ssl",
    "sweep",
    "symmetry",
    "syre",
    "tangent_kernel",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
