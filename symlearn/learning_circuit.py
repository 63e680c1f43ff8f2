r"""A learning circuit of four plastic synapses that assembles its own backward pass from random wiring.

An ascending stream carries activity, a descending one a teaching signal, and every synapse learns from its presynaptic
activity and the postsynaptic drive that arrives through the other stream (chapter :doc:`/chapters/learning_circuit`).
Source of the idea: Liao, Ziyin, Gan, Cheung, Harnett and Poggio, "Self-assembly of a biologically plausible learning
circuit", arXiv 2412.20018; the equations here are the book's reconstruction, one precise circuit with its properties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from symlearn._checks import (
    check_choice,
    check_fraction,
    check_generator,
    check_int,
    check_real,
    check_scalar,
    invalid,
    wrong_type,
)

__all__ = ["SelfAssemblingCircuit", "lateral_alignment", "mismatch_factor"]

_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # the function, and its derivative as a function of the output
    "tanh": (torch.tanh, lambda h: 1 - h.square()),
    "relu": (torch.relu, lambda h: (h > 0).to(h.dtype)),
    "linear": (lambda a: a, torch.ones_like),
}


def mismatch_factor(decay: float, n_steps: int) -> float:
    r"""What is left of any mismatch after a number of steps, :math:`(1-\lambda)^k`.

    Parameters
    ----------
    decay : float
        Fraction that a synapse loses per step, in [0, 1).
    n_steps : int
        Number of steps.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        For a decay outside [0, 1) or ``n_steps < 0``.

    References
    ----------
    Kolen and Pollack, "Backpropagation without weight transport", 1994; chapter :doc:`/chapters/learning_circuit`.

    Examples
    --------
    >>> mismatch_factor(0.5, 3)
    0.125
    """
    return (1 - check_fraction("decay", decay)) ** check_int("n_steps", n_steps, 0)


def lateral_alignment(n: int, m: int, n_samples: float = math.inf) -> float:
    r"""Cosine between a random vector :math:`v` and :math:`B^\top Bv`, for random lateral synapses :math:`B`.

    :math:`1/\sqrt{1+n/m+n/K}`, the mean over large matrices. The product of two such factors is the alignment of the
    circuit's feedback with the transpose of a random forward matrix between two layers.

    Parameters
    ----------
    n, m : int
        Ascending and descending neurons.
    n_samples : float
        Number :math:`K` of patterns that the synapses remember: infinity for independent Gaussian synapses, about
        ``batch_size / decay`` after :meth:`SelfAssemblingCircuit.develop`.

    Returns
    -------
    float
        In (0, 1).

    Raises
    ------
    TypeError
        If an argument is not a number.
    ValueError
        If an argument is not positive.

    References
    ----------
    Derived in chapter :doc:`/chapters/learning_circuit`.

    Examples
    --------
    >>> lateral_alignment(100, 200)
    0.816496...
    """
    values = []
    for name, value in (("n", n), ("m", m), ("n_samples", n_samples)):
        number = check_real(name, value)
        if number.ndim or not number > 0 or (name != "n_samples" and not math.isfinite(number)):
            raise invalid(name, "a number > 0", str(value))
        values.append(float(number))
    return 1 / math.sqrt(1 + values[0] / values[1] + values[0] / values[2])


class SelfAssemblingCircuit:
    r"""A classifier whose feedback synapses learn to be the transpose of the forward ones, by local plasticity alone.

    Ascending activity is :math:`h_l=\varphi(W_lh_{l-1}+c_l)`. The teaching signal starts as
    :math:`t_L=y-\mathrm{softmax}(a_L)` and descends by :math:`u_l=B_lt_l`, :math:`d_{l-1}=V_lu_l`,
    :math:`t_{l-1}=\varphi'\odot A_{l-1}d_{l-1}`. With batch means :math:`\langle\cdot\rangle`,

    .. math::

        W_l&\leftarrow(1-\lambda)W_l+\eta\langle t_lh_{l-1}^\top\rangle,\\
        V_l&\leftarrow(1-\lambda)V_l+\eta\langle(B_{l-1}h_{l-1})(B_lt_l)^\top\rangle .

    No synapse ever reads another's value, and nothing is differentiated.

    Parameters
    ----------
    sizes : sequence of int
        Widths :math:`n_0,\dots,n_L` of the input, the hidden layers and the output; at least three.
    activation : {"tanh", "relu", "linear"}
        Of the hidden layers.
    lr : float
        :math:`\eta>0`.
    decay : float
        Fraction :math:`\lambda` of ``W`` and ``V`` that is lost **per step**, in [0, 1); in terms of torch,
        ``weight_decay = decay / lr``. Biases do not decay.
    expansion : float
        Descending neurons per ascending neuron, :math:`m_l=\lceil rn_l\rceil`; at the top there is always one for one.
    lateral : {"random", "identity"}
        Synapses ``A`` and ``B`` between the streams: independent Gaussian, to be developed, or one to one, which is
        the circuit of Kolen and Pollack.
    plastic : collection of {"W", "V"}
        Which vertical synapses learn. Without ``"V"`` this is feedback alignment.
    device, dtype : optional
        Of all weights, float32 by default.
    generator : torch.Generator, optional
        Source of the initial weights and of spontaneous activity; torch's global one by default.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        For fewer than three sizes, a size below 1, ``lr <= 0``, a decay outside [0, 1), ``expansion <= 0`` or other
        than 1 with one-to-one synapses, and unknown names.

    References
    ----------
    Liao et al., arXiv 2412.20018; Lillicrap, Cownden, Tweed and Akerman, Nature Communications 2016; chapter
    :doc:`/chapters/learning_circuit`.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> circuit = SelfAssemblingCircuit((4, 8, 8, 3), expansion=2.0, generator=generator)
    >>> circuit.develop()
    >>> x, y = torch.randn(32, 4, generator=generator), torch.randint(3, (32,), generator=generator)
    >>> before = circuit.mismatch()
    >>> losses = [circuit.step(x, y) for _ in range(500)]
    >>> bool((circuit.mismatch() / before < 1.01 * mismatch_factor(0.002, 500)).all())
    True
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str = "tanh",
        lr: float = 0.2,
        decay: float = 2e-3,
        expansion: float = 1.0,
        lateral: str = "random",
        plastic: Collection[str] = ("W", "V"),
        device: Any = None,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        self.sizes = _check_sizes(sizes)
        self.activation = check_choice("activation", activation, _ACTIVATIONS)
        self.lr = check_scalar("lr", lr)
        if self.lr <= 0:
            raise invalid("lr", "> 0", self.lr)
        self.decay = check_fraction("decay", decay)
        self.expansion = check_scalar("expansion", expansion)
        if self.expansion <= 0:
            raise invalid("expansion", "> 0", self.expansion)
        self.lateral = check_choice("lateral", lateral, ("random", "identity"))
        if self.lateral == "identity" and self.expansion != 1:
            raise invalid("expansion", "1 with one-to-one lateral synapses", self.expansion)
        self.plastic = _check_plastic(plastic, ("W", "V"))
        if not isinstance(dtype, torch.dtype):
            raise wrong_type("dtype", "a torch.dtype", dtype)
        if not dtype.is_floating_point:
            raise invalid("dtype", "a floating-point dtype", str(dtype))
        self._generator = check_generator(generator)
        self._options = {"device": device, "dtype": dtype}
        self._phi, self._slope = _ACTIVATIONS[self.activation]
        self.descending_sizes = (
            *(math.ceil(self.expansion * n) for n in self.sizes[1:-1]),
            self.sizes[-1],
        )  # m_1, ..., m_L
        self._weights = self._initial_weights()

    @torch.no_grad()
    def develop(
        self,
        n_steps: int = 1000,
        *,
        decay: float = 0.01,
        batch_size: int = 10,
        plastic: Collection[str] = ("A", "B"),
    ) -> None:
        r"""Let the lateral synapses learn from spontaneous activity, before any data.

        Both streams are independent standard normal noise; ``A`` and ``B`` see the same products, so their difference
        :math:`A-B^\top` is multiplied by ``1 - decay`` in every step. The learning rate is the one that leaves their
        entries at variance :math:`1/m_l`.

        Parameters
        ----------
        n_steps : int
            Number of steps; a few over ``decay`` assemble the two.
        decay : float
            Fraction lost per step, in (0, 1).
        batch_size : int
            Patterns of spontaneous activity per step.
        plastic : collection of {"A", "B"}
            Which lateral synapses develop; the other stays as it is.

        Raises
        ------
        TypeError
            If an argument has the wrong type.
        ValueError
            For one-to-one lateral synapses, which have nothing to develop, or an argument out of range.
        """
        steps, batch = check_int("n_steps", n_steps, 0), check_int("batch_size", batch_size, 1)
        lost = check_fraction("decay", decay)
        if lost == 0:
            raise invalid("decay", "in (0, 1)", lost)
        chosen = _check_plastic(plastic, ("A", "B"))
        if self.lateral == "identity":
            raise invalid("lateral", '"random" for synapses to develop', '"identity"')
        for layer in range(1, len(self.sizes) - 1):
            n, m = self.sizes[layer], self.descending_sizes[layer - 1]
            a, b = self._weights[f"A{layer}"], self._weights[f"B{layer}"]
            gain = math.sqrt((2 * lost - lost**2) / (m * batch))
            for _ in range(steps):
                ascending, descending = self._normal(batch, n), self._normal(batch, m)
                change = gain * (ascending.T @ descending)
                if "A" in chosen:
                    a.mul_(1 - lost).add_(change)
                if "B" in chosen:
                    b.mul_(1 - lost).add_(change.T)

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> float:
        """Learn from one batch.

        Parameters
        ----------
        x : Tensor, shape (batch, n_0)
            Inputs; converted to the circuit's dtype and device.
        y : Tensor of int, shape (batch,)
            Labels.

        Returns
        -------
        float
            Mean cross-entropy of the batch before the step.

        Raises
        ------
        TypeError
            If an argument is not a tensor, or the labels are not integers.
        ValueError
            For a wrong shape, no samples, inputs that are not finite, or labels out of range.
        """
        x, y = self._check_batch(x, y)
        activity, logits = self._ascend(x)
        loss = float(F.cross_entropy(logits, y))
        teaching, descending = self._descend(activity, logits, y)
        top, rate = len(self.sizes) - 1, self.lr / len(x)
        changes = {}
        for layer in range(1, top + 1):
            if "W" in self.plastic:
                changes[f"W{layer}"] = teaching[layer].T @ activity[layer - 1]
                self._weights[f"c{layer}"].add_(teaching[layer].sum(0), alpha=rate)
            if "V" in self.plastic and layer > 1:
                drive = activity[layer - 1] @ self._weights[f"B{layer - 1}"].T
                changes[f"V{layer}"] = drive.T @ descending[layer]
        for name, change in changes.items():
            self._weights[name].mul_(1 - self.decay).add_(change, alpha=rate)
        return loss

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Logits, shape (batch, n_L), for inputs of shape (batch, n_0)."""
        return self._ascend(self._check_inputs(x))[1]

    @torch.no_grad()
    def alignment(self) -> Tensor:
        r"""Cosine between the effective feedback :math:`K_l=A_{l-1}V_lB_l` and :math:`W_l^\top`.

        Returns
        -------
        Tensor, shape (L - 1,)
            For :math:`l=2,\dots,L`; 1 for backpropagation, about 0 for random wiring, 0 where a matrix vanishes.
        """
        found = []
        for layer in range(2, len(self.sizes)):
            feedback = self._feedback(layer)
            forward = self._weights[f"W{layer}"].T
            norms = feedback.norm() * forward.norm()
            found.append((feedback * forward).sum() / norms if norms > 0 else torch.zeros_like(norms))
        return torch.stack(found)

    @torch.no_grad()
    def mismatch(self) -> Tensor:
        r"""Distance of the descending synapses from where they assemble, :math:`\|V_l-B_{l-1}W_l^\top B_l^\top\|_F`.

        Returns
        -------
        Tensor, shape (L - 1,)
            For :math:`l=2,\dots,L`. Each step multiplies it by exactly ``1 - decay`` if ``W`` and ``V`` are plastic.
        """
        found = []
        for layer in range(2, len(self.sizes)):
            target = self._weights[f"B{layer - 1}"] @ self._weights[f"W{layer}"].T @ self._lateral_down(layer).T
            found.append((self._weights[f"V{layer}"] - target).norm())
        return torch.stack(found)

    def gradient_angle(self, x: Tensor, y: Tensor) -> Tensor:
        """Angle between the update of each forward matrix and the negative gradient of the mean cross-entropy.

        Parameters
        ----------
        x : Tensor, shape (batch, n_0)
            Inputs.
        y : Tensor of int, shape (batch,)
            Labels.

        Returns
        -------
        Tensor, shape (L,)
            Degrees, layers 1 to L; the update is that without decay. 0 at the top for any circuit; NaN where an update
            or a gradient vanishes.

        Raises
        ------
        TypeError, ValueError
            As :meth:`step`.
        """
        x, y = self._check_batch(x, y)
        with torch.enable_grad():
            names = [f"W{layer}" for layer in range(1, len(self.sizes))]
            leaves = {name: self._weights[name].detach().clone().requires_grad_() for name in names}
            _, logits = self._ascend(x, leaves)
            gradients = torch.autograd.grad(F.cross_entropy(logits, y), list(leaves.values()))
        with torch.no_grad():
            activity, logits = self._ascend(x)
            teaching, _ = self._descend(activity, logits, y)
            updates = [teaching[layer].T @ activity[layer - 1] for layer in range(1, len(self.sizes))]
            return torch.stack([_angle(update, -grad) for update, grad in zip(updates, gradients, strict=True)])

    def weights(self) -> dict[str, Tensor]:
        """Copies of all weights, by name: ``"W1"``, ``"c1"``, ..., ``"V2"``, ..., ``"A1"``, ``"B1"``, ...

        ``W{l}`` is (n_l, n_{l-1}), ``c{l}`` (n_l,), ``V{l}`` (m_{l-1}, m_l), ``A{l}`` (n_l, m_l), ``B{l}`` (m_l, n_l).
        """
        return {name: value.clone() for name, value in self._weights.items()}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set some or all of the weights; all are checked before any is set.

        Parameters
        ----------
        weights : mapping of str to Tensor
            Names and shapes as in :meth:`weights`.

        Raises
        ------
        TypeError
            If ``weights`` is not a mapping of tensors.
        ValueError
            For an unknown name, a wrong shape, or values that are not finite.
        """
        if not isinstance(weights, Mapping):
            raise wrong_type("weights", "a mapping of names to tensors", weights)
        for name, value in weights.items():
            if name not in self._weights:
                raise invalid("weights", f"a mapping of the names {', '.join(self._weights)}", repr(name))
            if not isinstance(value, Tensor):
                raise wrong_type(f"weights[{name!r}]", "a tensor", value)
            shape = tuple(self._weights[name].shape)
            if tuple(value.shape) != shape:
                raise invalid(f"weights[{name!r}]", f"of shape {shape}", f"shape {tuple(value.shape)}")
            if not bool(value.isfinite().all()):
                raise invalid(f"weights[{name!r}]", "finite", "inf or nan")
        for name, value in weights.items():
            self._weights[name].copy_(value)

    def __repr__(self) -> str:
        """The architecture in a line."""
        return (
            f"SelfAssemblingCircuit({self.sizes}, activation={self.activation!r}, lateral={self.lateral!r}, "
            f"expansion={self.expansion:g}, plastic={self.plastic})"
        )

    def _initial_weights(self) -> dict[str, Tensor]:
        n, m = self.sizes, (0, *self.descending_sizes)
        layers = range(1, len(n))
        weights = {f"W{i}": self._normal(n[i], n[i - 1]) / math.sqrt(n[i - 1]) for i in layers}
        weights |= {f"c{i}": torch.zeros(n[i], **self._options) for i in layers}
        weights |= {f"V{i}": self._normal(m[i - 1], m[i]) / math.sqrt(m[i]) for i in layers if i > 1}
        for i in layers[:-1]:
            if self.lateral == "identity":
                weights[f"A{i}"], weights[f"B{i}"] = (torch.eye(n[i], **self._options) for _ in range(2))
            else:
                weights[f"A{i}"] = self._normal(n[i], m[i]) / math.sqrt(m[i])
                weights[f"B{i}"] = self._normal(m[i], n[i]) / math.sqrt(m[i])
        return weights

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, **self._options)

    def _ascend(self, x: Tensor, replaced: Mapping[str, Tensor] | None = None) -> tuple[list[Tensor], Tensor]:
        """Activities h_0, ..., h_{L-1}, and the logits."""
        weights = self._weights | dict(replaced or {})
        activity = [x]
        top = len(self.sizes) - 1
        for layer in range(1, top):
            activity.append(self._phi(torch.addmm(weights[f"c{layer}"], activity[-1], weights[f"W{layer}"].T)))
        return activity, torch.addmm(weights[f"c{top}"], activity[-1], weights[f"W{top}"].T)

    def _descend(
        self, activity: list[Tensor], logits: Tensor, y: Tensor
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Teaching signals t_l, and the descending activities u_l, by layer."""
        top = len(self.sizes) - 1
        teaching = {top: F.one_hot(y, self.sizes[-1]).to(logits.dtype) - logits.softmax(1)}
        descending = {top: teaching[top]}
        for layer in range(top, 1, -1):
            arriving = descending[layer] @ self._weights[f"V{layer}"].T
            below = activity[layer - 1]
            teaching[layer - 1] = self._slope(below) * (arriving @ self._weights[f"A{layer - 1}"].T)
            descending[layer - 1] = teaching[layer - 1] @ self._weights[f"B{layer - 1}"].T
        return teaching, descending

    def _lateral_down(self, layer: int) -> Tensor:
        """B_l, one to one at the top."""
        if layer == len(self.sizes) - 1:
            return torch.eye(self.sizes[-1], **self._options)
        return self._weights[f"B{layer}"]

    def _feedback(self, layer: int) -> Tensor:
        return self._weights[f"A{layer - 1}"] @ self._weights[f"V{layer}"] @ self._lateral_down(layer)

    def _check_inputs(self, x: Any) -> Tensor:
        if not isinstance(x, Tensor):
            raise wrong_type("x", "a tensor", x)
        if x.ndim != 2 or x.shape[1] != self.sizes[0] or len(x) == 0:
            raise invalid("x", f"of shape (batch, {self.sizes[0]})", f"shape {tuple(x.shape)}")
        if x.is_complex() or not bool(x.isfinite().all()):
            raise invalid("x", "finite real numbers", "complex numbers" if x.is_complex() else "inf or nan")
        return x.detach().to(**self._options)

    def _check_batch(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        inputs = self._check_inputs(x)
        if not isinstance(y, Tensor):
            raise wrong_type("y", "a tensor of integers", y)
        if y.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            raise TypeError(f"y must be a tensor of integers, got dtype {y.dtype}")
        if tuple(y.shape) != (len(inputs),):
            raise invalid("y", f"of shape ({len(inputs)},)", f"shape {tuple(y.shape)}")
        if int(y.min()) < 0 or int(y.max()) >= self.sizes[-1]:
            raise invalid("y", f"labels in [0, {self.sizes[-1]})", f"{int(y.min())} to {int(y.max())}")
        return inputs, y.to(device=inputs.device, dtype=torch.int64)


def _angle(first: Tensor, second: Tensor) -> Tensor:
    """Degrees, exact for small angles, in float64."""
    u, v = first.double(), second.double()
    u, v = u / u.norm(), v / v.norm()
    return torch.rad2deg(2 * torch.atan2((u - v).norm(), (u + v).norm()))


def _check_sizes(sizes: Any) -> tuple[int, ...]:
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise wrong_type("sizes", "a sequence of ints", sizes)
    widths = tuple(check_int("sizes", each, 1) for each in sizes)
    if len(widths) < 3:
        raise invalid("sizes", "at least three widths: input, hidden, output", repr(widths))
    return widths


def _check_plastic(plastic: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(plastic, str) or not isinstance(plastic, Collection):
        raise wrong_type("plastic", f"a collection of {names}", plastic)
    for name in plastic:
        if name not in names:
            raise invalid("plastic", f"a collection of {names}", repr(name))
    return tuple(name for name in names if name in plastic)
