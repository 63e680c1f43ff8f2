r"""The law of balance, and the stationary distribution of SGD on a diagonal linear network of any depth.

Minibatch noise drives two layers that can be rescaled against each other to a balance of their gradient noise; there a
diagonal linear network is one scalar with a stationary density in closed form, which is no Boltzmann density of the
loss (chapter :doc:`/chapters/law_of_balance`). Source: Ziyin, Li and Ueda, "Law of Balance and Stationary Distribution
of Stochastic Gradient Descent", arXiv:2308.06671.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from symlearn._batch_mean import check_decay
from symlearn._checks import (
    check_finite,
    check_int,
    check_nonnegative,
    check_positive,
    check_real,
    check_rng,
    check_scalar,
    check_shape,
    invalid,
    wrong_type,
)
from symlearn._diagonal_sgd import Steps, run_chains
from symlearn._stationary_density import BranchDensity, LineDensity
from symlearn.gradients import gradient_noise
from symlearn.symmetry import ContinuousSymmetry

__all__ = [
    "BalanceRate",
    "RegressionMoments",
    "SGDEnsemble",
    "StationaryDistribution",
    "balance_rate",
    "simulate_sgd",
]

# Numbers beyond these would leave the range of float64 in products.
_LARGEST, _SMALLEST = 1e40, 1e-40
_LARGEST_DATA, _LARGEST_PARAMETER = 1e9, 1e6
_LARGEST_BATCH, _DEEPEST = 1_000_000, 1000
_SLACK = 1e-9
# Below, labels are a function of the inputs up to rounding.
_NOISE_FREE = 1e-12


@dataclass(frozen=True, eq=False)
class BalanceRate:
    r"""Expected change of a Noether charge per unit of time :math:`t=\eta k`.

    The tensors have the shape of ``symmetry.charge``; ``lr * total`` is the exact expected change in one step.

    Attributes
    ----------
    noise : Tensor
        :math:`T\operatorname{Tr}[\Sigma A]`, with :math:`T` the learning rate over the batch size: the law of balance.
    discretization : Tensor
        :math:`\eta\,\nabla L^\top A\nabla L`, which vanishes with the learning rate.
    decay : Tensor
        :math:`(-2\lambda+\eta\lambda^2)\,C`, from weight decay.
    """

    noise: Tensor
    discretization: Tensor
    decay: Tensor

    @property
    def total(self) -> Tensor:
        """Sum of the three parts."""
        return self.noise + self.discretization + self.decay


@dataclass(frozen=True)
class RegressionMoments:
    r"""The five moments of scalar data (x, y) on which the stationary distribution depends.

    Attributes
    ----------
    alpha1 : float
        :math:`\operatorname{Var}[xy]`, >= 0.
    alpha2 : float
        :math:`\operatorname{Cov}[x^2,xy]`.
    alpha3 : float
        :math:`\operatorname{Var}[x^2]`, >= 0.
    beta1 : float
        :math:`\mathbb E[x^2]`, > 0.
    beta2 : float
        :math:`\mathbb E[xy]`.

    Raises
    ------
    ValueError
        For moments that are not finite or beyond 1e40, ``alpha1`` or ``alpha3`` negative, ``beta1`` not positive, any
        of these three positive but below 1e-40, or moments that no data have: :math:`\alpha_2^2>\alpha_1\alpha_3`.
    TypeError
        For moments that are not real numbers.

    Examples
    --------
    >>> moments = RegressionMoments.from_gaussian(slope=1.0, noise_std=2.0)
    >>> moments
    RegressionMoments(alpha1=6.0, alpha2=2.0, alpha3=2.0, beta1=1.0, beta2=1.0)
    >>> moments.noise([0.0, 1.0])
    array([6., 4.])
    """

    alpha1: float
    alpha2: float
    alpha3: float
    beta1: float
    beta2: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = check_scalar(field.name, getattr(self, field.name))
            if field.name in ("alpha1", "alpha3"):
                value = float(check_nonnegative(field.name, value))
            elif field.name == "beta1":
                value = float(check_positive(field.name, value))
            if abs(value) > _LARGEST:
                raise invalid(field.name, f"at most {_LARGEST:g} in modulus", value)
            if field.name not in ("alpha2", "beta2") and 0 < value < _SMALLEST:
                raise invalid(field.name, f"at least {_SMALLEST:g}, or 0 for a variance", value)
            object.__setattr__(self, field.name, value)
        largest = math.sqrt(self.alpha1) * math.sqrt(self.alpha3)
        if abs(self.alpha2) > largest * (1 + _SLACK):
            raise invalid("alpha2", f"at most sqrt(alpha1 * alpha3) = {largest:g} in modulus", self.alpha2)

    @classmethod
    def from_data(cls, x: ArrayLike, y: ArrayLike) -> RegressionMoments:
        """Moments of a data set, from which samples are then drawn with replacement.

        Parameters
        ----------
        x, y : array_like, shape (N,)
            Inputs and labels, at least 2. They are not centred: the model has no intercept.

        Returns
        -------
        RegressionMoments
            Variances and the covariance are divided by N.

        Raises
        ------
        ValueError
            For fewer than 2 samples, other shapes, non-finite numbers, ``x`` all 0, or magnitudes beyond 1e9.
        TypeError
            For anything but real numbers.

        Examples
        --------
        >>> RegressionMoments.from_data([1.0, -1.0], [2.0, 0.0])
        RegressionMoments(alpha1=1.0, alpha2=0.0, alpha3=0.0, beta1=1.0, beta2=1.0)
        """
        inputs, labels = _check_data(x, y)
        if not inputs.any():
            raise invalid("x", "nonzero in at least one sample", "only zeros")
        square, product = inputs**2, inputs * labels
        beta1, beta2 = float(square.mean()), float(product.mean())
        square, product = square - beta1, product - beta2
        if np.abs(square).max() <= 1e-14 * beta1:  # equal up to rounding
            square = np.zeros_like(square)
        alpha1, alpha2, alpha3 = (product**2).mean(), (product * square).mean(), (square**2).mean()
        return cls(float(alpha1), float(alpha2), float(alpha3), beta1, beta2)

    @classmethod
    def from_gaussian(cls, slope: float, noise_std: float, input_std: float = 1.0) -> RegressionMoments:
        r"""Moments of :math:`y=kx+\epsilon` with centred Gaussian inputs and noise.

        Parameters
        ----------
        slope : float
            The slope :math:`k`.
        noise_std : float
            Standard deviation of :math:`\epsilon`, >= 0.
        input_std : float
            Standard deviation of :math:`x`, > 0.

        Returns
        -------
        RegressionMoments
            The population moments.

        Raises
        ------
        ValueError, TypeError
            For standard deviations out of range, or numbers that are not finite.

        Examples
        --------
        >>> RegressionMoments.from_gaussian(slope=1.0, noise_std=30.0).alpha1
        902.0
        """
        k = check_scalar("slope", slope)
        s = float(check_nonnegative("noise_std", check_scalar("noise_std", noise_std)))
        q = float(check_positive("input_std", check_scalar("input_std", input_std)))
        for name, value in (("slope", k), ("noise_std", s), ("input_std", q)):
            if abs(value) > _LARGEST_PARAMETER:
                raise invalid(name, f"at most {_LARGEST_PARAMETER:g} in modulus", value)
        return cls(2 * k**2 * q**4 + q**2 * s**2, 2 * k * q**4, 2 * q**4, q**2, k * q**2)

    def noise(self, v: ArrayLike) -> np.ndarray:
        r""":math:`C(v)=\alpha_1-2\alpha_2v+\alpha_3v^2`, the variance of :math:`x(vx-y)`; of the gradient it is 4 C."""
        product = check_finite("v", v)
        with np.errstate(over="ignore"):
            return self.alpha1 - 2 * self.alpha2 * product + self.alpha3 * product**2


@dataclass(frozen=True)
class StationaryDistribution:
    r"""Where SGD on :math:`f(x)=v\,x`, with :math:`v` a product of ``depth`` weights, finally is.

    The loss is :math:`(f(x)-y)^2` (no factor 1/2), time is continuous, and the layers are balanced,
    :math:`|w_k|=|v|^{1/n}`: from any start they become so. With :math:`\gamma=\lambda/2` and C the noise,

    .. math:: p(v)\propto\frac1{C(v)\,|v|^{3-3/n}}
        \exp\Bigl\{-\frac1{nT}\int^v\frac{(\beta_1r-\beta_2)\,r^{-2+2/n}+\gamma\,r^{-3+4/n}}{C(r)}\,dr\Bigr\}.

    Parameters
    ----------
    moments : RegressionMoments
        Moments of the data, with ``alpha1 > 0``.
    temperature : float
        :math:`T`, the learning rate over the batch size, > 0.
    depth : int
        Number :math:`n` of multiplied weights, 1 to 1000. Any width is the same.
    weight_decay : float
        Torch's weight decay :math:`\lambda`, >= 0.
    sign : {1, -1}
        The branch: for depth 2 or more :math:`v` never changes its sign. Ignored for depth 1.

    Raises
    ------
    ValueError
        For numbers out of range or not finite, or ``alpha1`` of 0. By `pdf` and all that follows: where no density
        exists, see `is_normalizable`.
    TypeError
        For a ``depth`` or ``sign`` that is not an integer, or other ``moments``.

    Notes
    -----
    This is the limit of small steps. Discrete SGD deviates by about the step size times :math:`C^{1/2}`, and at depth 3
    or more rare chains diverge or change their sign. Depth 1 is Pearson's type IV. Depth 2 with inputs of one modulus
    is a Gamma law.

    References
    ----------
    Ziyin, Li and Ueda, arXiv:2308.06671; chapter :doc:`/chapters/law_of_balance`.

    Examples
    --------
    Above the critical temperature a two-layer network learns nothing; below, noise pulls it towards 0:

    >>> moments = RegressionMoments.from_gaussian(slope=1.0, noise_std=10.0)
    >>> law = StationaryDistribution(moments, temperature=0.002)
    >>> round(law.critical_temperature, 5), round(law.mean(), 4), round(law.mode(), 4), round(law.var(), 4)
    (0.0098, 0.7985, 0.3995, 0.3223)
    >>> law.cdf([0.0, 1.0, 2.0]).round(4)
    array([0.    , 0.7136, 0.9598])
    """

    moments: RegressionMoments
    temperature: float
    depth: int = 2
    weight_decay: float = 0.0
    sign: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.moments, RegressionMoments):
            raise wrong_type("moments", "RegressionMoments", self.moments)
        if not self.moments.alpha1:
            raise invalid("moments", "of alpha1 > 0 (labels that vary)", "alpha1 = 0")
        temperature = float(check_positive("temperature", check_scalar("temperature", self.temperature)))
        if not _SMALLEST <= temperature <= _LARGEST:
            raise invalid("temperature", f"between {_SMALLEST:g} and {_LARGEST:g}", temperature)
        decay, depth = check_decay(self.weight_decay), check_int("depth", self.depth, 1, _DEEPEST)
        if decay > _LARGEST:
            raise invalid("weight_decay", f"at most {_LARGEST:g}", decay)
        sign = check_int("sign", self.sign, -1, 1)
        if not sign:
            raise invalid("sign", "1 or -1", 0)
        for name, value in (("temperature", temperature), ("depth", depth), ("weight_decay", decay), ("sign", sign)):
            object.__setattr__(self, name, value)

    @property
    def critical_temperature(self) -> float:
        r"""Temperature from which on all mass is at 0: for depth 2 :math:`(\beta_2-\lambda/2)/\alpha_1`, or 0.

        ``inf`` for depth 1. For depth 3 or more ``inf`` without weight decay on the branch of the sign of ``beta2``,
        else 0.
        """
        if self.depth == 1:
            return math.inf
        if self.depth == 2:
            return max(0.0, self._drive / self.moments.alpha1)
        return math.inf if self._drive > 0 and not self.weight_decay else 0.0

    @property
    def is_normalizable(self) -> bool:
        """Whether there is a density: below the critical temperature, unless the noise is 0 somewhere on the branch."""
        return self.temperature < self.critical_temperature and self._quiet_point is None

    @property
    def density_tail_exponent(self) -> float:
        r"""The :math:`\tau` of :math:`p(v)\sim|v|^{-\tau}` for large :math:`|v|`; ``inf`` without a power law.

        :math:`5-3/n` whatever the temperature for depth 2 or more, and :math:`2+(\beta_1+\lambda/2)/(T\alpha_3)` for
        depth 1. Probabilities fall as :math:`\Pr(|V|>r)\sim r^{1-\tau}`; moments of order :math:`\tau-1` diverge.
        """
        if not self.moments.alpha3:
            return math.inf
        if self.depth == 1:
            return 2 + self._pull / self.temperature / self.moments.alpha3
        return 5 - 3 / self.depth

    def pdf(self, v: ArrayLike) -> np.ndarray:
        """Density of the product v, normalised over the branch.

        Parameters
        ----------
        v : array_like
            Points of any shape.

        Returns
        -------
        ndarray
            0 off the branch. At 0 the limit: 0, or ``inf`` for depth 2 above a third of the critical temperature.

        Raises
        ------
        ValueError
            For NaN, or where there is no density.
        """
        with np.errstate(over="ignore"):
            return np.exp(self.logpdf(v))

    def logpdf(self, v: ArrayLike) -> np.ndarray:
        """Logarithm of the density, ``-inf`` off the branch; see `pdf`."""
        points = _check_points(v)
        if self.depth == 1:
            return self._density.logpdf(points)
        on_branch = self.sign * points >= 0
        return np.where(on_branch, self._density.logpdf(np.abs(points)), -np.inf)

    def cdf(self, v: ArrayLike) -> np.ndarray:
        """Probability of a product of at most v, on either branch, accurate for small probabilities too.

        Parameters
        ----------
        v : array_like
            Points of any shape, infinities included.

        Returns
        -------
        ndarray
            Probabilities; errors as from `pdf`.
        """
        points = _check_points(v)
        if isinstance(self._density, LineDensity):
            return self._density.cdf(points)
        return self._density.cdf(self.sign * points, upper=self.sign < 0)

    def ppf(self, q: ArrayLike) -> np.ndarray:
        """Quantiles, the inverse of `cdf`.

        Parameters
        ----------
        q : array_like
            Probabilities from 0 to 1.

        Returns
        -------
        ndarray
            Products v. At 0 and 1 the ends of the support, which may be infinite.

        Raises
        ------
        ValueError
            For probabilities outside of [0, 1], or where there is no density.
        """
        mass = check_nonnegative("q", q)
        if (mass > 1).any():
            raise invalid("q", "<= 1", float(mass.max()))
        flat = mass.ravel()
        if isinstance(self._density, LineDensity):
            return self._density.ppf(flat).reshape(mass.shape)
        return self.sign * self._density.ppf(flat, upper=self.sign < 0).reshape(mass.shape)

    def mean(self) -> float:
        r"""Mean of v: for depth 1 :math:`\beta_2/(\beta_1+\lambda/2)`; nearer to 0 at any larger depth."""
        return self._density.mean() * (1 if self.depth == 1 else self.sign)

    def var(self) -> float:
        """Variance of v; ``inf`` for a `density_tail_exponent` of 3 or less."""
        return self._density.var()

    def mode(self) -> float:
        """Most likely v, the highest point of the density; 0 for depth 2 from a third of the critical temperature."""
        return self._density.mode() * (1 if self.depth == 1 else self.sign)

    def rvs(self, size: int | tuple[int, ...], rng: int | np.random.Generator | None = None) -> np.ndarray:
        """Independent draws by inversion of the distribution function.

        Parameters
        ----------
        size : int or tuple of int
            Shape of the result.
        rng : int, numpy.random.Generator or None
            Source of randomness.

        Returns
        -------
        ndarray, shape ``size``
            Products v.

        Raises
        ------
        ValueError
            For a negative size, or where there is no density.
        TypeError
            For sizes that are not integers, or another ``rng``.
        """
        sizes = size if isinstance(size, tuple) else (size,)
        shape = tuple(check_int("size", length, 0) for length in sizes)
        return self.ppf(check_rng(rng).uniform(size=shape))

    @cached_property
    def _density(self) -> LineDensity | BranchDensity:
        if self.temperature >= self.critical_temperature:
            condition = f"< critical_temperature={self.critical_temperature:.8g} for a density (the mass sits at v = 0)"
            raise invalid("temperature", condition, self.temperature)
        if self._quiet_point is not None:
            condition = "such that the noise is > 0 on the whole branch for a density"
            raise invalid("moments", condition, f"noise 0 at v = {self._quiet_point:g}")
        data, t = self.moments, self.temperature
        rho = self._correlation
        found: LineDensity | BranchDensity
        if self.depth == 1:
            found = LineDensity(data.alpha1, data.alpha3, rho, self._pull, data.beta2, t)
        else:
            found = BranchDensity(data.alpha1, data.alpha3, self.sign * rho, data.beta1, self._drive, t, self.depth)
        if not found.table.resolved:
            raise invalid("temperature", "such that float64 resolves the spread of v", t)
        return found

    @property
    def _pull(self) -> float:
        return self.moments.beta1 + self.weight_decay / 2

    @property
    def _drive(self) -> float:
        """What pulls v away from 0 on the branch; weight decay is of the same order for depth 2 alone."""
        decay = self.weight_decay / 2 if self.depth == 2 else 0.0
        return self.sign * self.moments.beta2 - decay

    @property
    def _correlation(self) -> float:
        data = self.moments
        return data.alpha2 / math.sqrt(data.alpha1) / math.sqrt(data.alpha3) if data.alpha3 else 0.0

    @property
    def _quiet_point(self) -> float | None:
        """The v on the branch at which all gradients are the same, if there is one."""
        rho = self._correlation
        if (1 - rho) * (1 + rho) > _NOISE_FREE or (self.depth > 1 and self.sign * rho < 0):
            return None
        return self.moments.alpha2 / self.moments.alpha3


@dataclass(frozen=True, eq=False)
class SGDEnsemble:
    """Independent chains of SGD; those that diverged are marked in ``diverged``, and NaN in the other fields.

    Attributes
    ----------
    weights : ndarray, shape (n_chains, depth, width)
        Weights after the last step.
    product : ndarray, shape (n_chains,)
        The slope v of the network after the last step: products over the layers, summed over the width.
    diverged : ndarray of bool, shape (n_chains,)
        Chains that left the range of float64.
    record_steps : ndarray of int, shape (r,)
        Numbers of steps after which the product was recorded, the last step among them.
    record_product : ndarray, shape (r, n_chains)
        The product at these steps.
    """

    weights: np.ndarray
    product: np.ndarray
    diverged: np.ndarray
    record_steps: np.ndarray
    record_product: np.ndarray


def simulate_sgd(
    x: ArrayLike,
    y: ArrayLike,
    *,
    depth: int = 2,
    width: int = 1,
    lr: float,
    batch_size: int = 1,
    n_steps: int,
    n_chains: int = 1024,
    weight_decay: float = 0.0,
    init: ArrayLike = 0.5,
    record_every: int | None = None,
    rng: int | np.random.Generator | None = None,
) -> SGDEnsemble:
    r"""Minibatch SGD on the diagonal linear network :math:`f(x)=x\sum_i\prod_kw_{ki}`, many chains at once.

    The discrete algorithm without approximation, for the loss :math:`(f(x)-y)^2` (no factor 1/2) and minibatches that
    are drawn with replacement. At depth 1 and 2 the width costs nothing, and with equal layers the depth little.

    Parameters
    ----------
    x, y : array_like, shape (N,)
        Data, at least 2 samples.
    depth : int
        Number of multiplied weights.
    width : int
        Number of products that are summed.
    lr : float
        Learning rate :math:`\eta`, > 0.
    batch_size : int
        Samples per step, up to 1e6; the temperature is ``lr / batch_size``.
    n_steps : int
        Number of steps.
    n_chains : int
        Number of independent chains.
    weight_decay : float
        Torch's weight decay :math:`\lambda`, >= 0.
    init : array_like
        Weights at the start; broadcasts to (n_chains, depth, width). Give ``init[:, :, None]`` for width 1.
    record_every : int, optional
        Record the product after every so many steps; None: only after the last.
    rng : int, numpy.random.Generator or None
        Source of the minibatches.

    Returns
    -------
    SGDEnsemble
        Final weights and products, divergences, and records.

    Raises
    ------
    ValueError
        For data of different lengths, fewer than 2 samples or not finite, counts below 1, ``lr`` not positive, a
        negative weight decay, an ``init`` of a shape that does not broadcast, or a step beyond the range of float64.
    TypeError
        For counts that are not integers, or another ``rng``.

    References
    ----------
    Ziyin, Li and Ueda, arXiv:2308.06671; chapter :doc:`/chapters/law_of_balance`.

    Examples
    --------
    Five hundred chains against the stationary law of their data:

    >>> x, noise = np.random.default_rng(0).normal(size=(2, 5000))
    >>> y = x + 10 * noise
    >>> chains = simulate_sgd(x, y, lr=0.001, n_steps=4000, n_chains=500, rng=0)
    >>> law = StationaryDistribution(RegressionMoments.from_data(x, y), temperature=0.001)
    >>> bool(abs(chains.product.mean() - law.mean()) < 4 * chains.product.std() / 500**0.5)
    True
    """
    inputs, labels = _check_data(x, y)
    rate = float(check_positive("lr", check_scalar("lr", lr)))
    decay, size = check_decay(weight_decay), check_int("batch_size", batch_size, 1, _LARGEST_BATCH)
    last, chains = check_int("n_steps", n_steps, 1), check_int("n_chains", n_chains, 1)
    shape = (chains, check_int("depth", depth, 1), check_int("width", width, 1))
    every = last if record_every is None else check_int("record_every", record_every, 1)
    start = check_finite("init", init)
    try:
        start = np.broadcast_to(start, shape)
    except ValueError:
        condition = f"of a shape that broadcasts to (n_chains, depth, width) = {shape}"
        raise invalid("init", condition, f"shape {start.shape}") from None
    with np.errstate(over="ignore", invalid="ignore"):
        slope, drive = 2 * rate / size * inputs**2, 2 * rate / size * (inputs * labels)
    if not (np.isfinite(slope).all() and np.isfinite(drive).all() and math.isfinite(rate * decay)):
        raise invalid("lr", "such that lr * x**2, lr * x * y and lr * weight_decay are finite", rate)
    records = np.unique(np.append(np.arange(every, last + 1, every), last))
    seed = int(check_rng(rng).integers(2**63))
    steps = Steps(slope, drive, 1 - rate * decay, size, last)
    weights, products = run_chains(start, steps, records, seed)
    diverged = ~(np.isfinite(weights).all((1, 2)) & np.isfinite(products[-1]))
    weights[diverged], products[~np.isfinite(products)] = np.nan, np.nan
    products[-1, diverged] = np.nan
    return SGDEnsemble(weights, products[-1].copy(), diverged, records, products)


def balance_rate(
    sample_loss: Callable[..., Tensor],
    params: Mapping[str, Tensor],
    symmetry: ContinuousSymmetry,
    inputs: Tensor,
    targets: Tensor,
    *,
    lr: float,
    batch_size: int,
    weight_decay: float = 0.0,
    chunk_size: int = 256,
) -> BalanceRate:
    r"""Drift of a Noether charge under minibatch SGD: exact for one step of any size, of any torch model.

    With :math:`C=\theta^\top A\theta`, :math:`T=\eta/S`, and minibatches drawn with replacement,

    .. math:: \tfrac1\eta\mathbb E[\Delta C] = T\operatorname{Tr}[\Sigma A] + \eta\,\nabla L^\top A\nabla L
        + (-2\lambda+\eta\lambda^2)\,C .

    For a rescaling the first term is :math:`T(\operatorname{Tr}\Sigma_u-\operatorname{Tr}\Sigma_w)`, which is zero only
    in balance. Gradient flow has none of the three. It holds for plain SGD, without momentum.

    Parameters
    ----------
    sample_loss : callable
        ``sample_loss(params, x, y)``, a scalar for one sample; see `symlearn.gradients.make_sample_loss`. It must have
        the symmetry for every sample (``symmetry.violation``): this is not checked.
    params : dict of Tensor
        Where. Never changed.
    symmetry : ContinuousSymmetry
        `symlearn.symmetry.Rescaling`, `symlearn.symmetry.Scale` or `symlearn.symmetry.GL`.
    inputs, targets : Tensor, shape (N, ...)
        The data from which minibatches are drawn, samples on axis 0, at least 2.
    lr : float
        Learning rate :math:`\eta`, > 0.
    batch_size : int
        Samples per step :math:`S`.
    weight_decay : float
        Torch's weight decay :math:`\lambda`, >= 0, on all tensors of the symmetry.
    chunk_size : int
        Samples that are processed at once: changes memory, not the result.

    Returns
    -------
    BalanceRate
        The three parts, per unit of time: ``lr * rate.total`` is the expected change in one step.

    Raises
    ------
    ValueError, TypeError
        For ``lr``, ``batch_size`` or ``weight_decay`` out of range or of a wrong type; otherwise as
        `symlearn.gradients.gradient_noise`.

    References
    ----------
    Ziyin, Li and Ueda, arXiv:2308.06671; chapter :doc:`/chapters/law_of_balance`.

    Examples
    --------
    Two scalar layers, the first too large: the noise makes the imbalance of 3.75 shrink.

    >>> import torch
    >>> from symlearn.symmetry import Rescaling
    >>> def sample_loss(params, x, y):
    ...     return (params["u"] * params["w"] * x - y) ** 2
    >>> params = {"u": torch.tensor(2.0), "w": torch.tensor(0.5)}
    >>> x, y = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.0, 1.0, 1.0])
    >>> layers = Rescaling("u", "w", per_unit=False)
    >>> balance_rate(sample_loss, params, layers, x, y, lr=0.1, batch_size=1).noise
    tensor(-0.3333)
    """
    rate, decay = float(check_positive("lr", check_scalar("lr", lr))), check_decay(weight_decay)
    size = check_int("batch_size", batch_size, 1)
    if not isinstance(symmetry, ContinuousSymmetry):
        raise wrong_type("symmetry", "one with a charge (Rescaling, Scale, GL)", symmetry)
    found = gradient_noise(sample_loss, params, inputs, targets, symmetry, chunk_size=chunk_size)
    charge = symmetry.charge({name: params[name].detach() for name in symmetry.names}).to(found.noise_trace.dtype)
    return BalanceRate(rate / size * found.noise_trace, rate * found.mean_part, (rate * decay**2 - 2 * decay) * charge)


def _check_data(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    inputs, labels = check_shape("x", x, (None,)), check_shape("y", y, (None,))
    if inputs.size < 2:
        raise invalid("x", "of at least 2 samples", f"{inputs.size}")
    if labels.size != inputs.size:
        raise invalid("y", f"as long as x ({inputs.size})", f"length {labels.size}")
    for name, values in (("x", inputs), ("y", labels)):
        if np.abs(values).max() > _LARGEST_DATA:
            raise invalid(name, f"at most {_LARGEST_DATA:g} in modulus", float(np.abs(values).max()))
    return inputs, labels


def _check_points(v: ArrayLike) -> np.ndarray:
    points = check_real("v", v)
    for index in np.argwhere(np.isnan(points))[:1]:
        raise invalid("v", "a number", f"nan at index {', '.join(map(str, index))}" if index.size else "nan")
    return points
