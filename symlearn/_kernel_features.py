"""Features of the tangent kernel of any module: from the structure of its layers where that is sure, else Jacobians.

One sample is run alone and watched. A parameter keeps the structure of its layers only if they are its only uses in
the graph of the output. The sample must have the same outputs and the same gradients in its batch as alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from symlearn._checks import invalid, wrong_type
from symlearn._kernel_contraction import (
    BiasGradients,
    Features,
    Gradients,
    OuterProducts,
    Pass,
    PositionPairs,
    ScaleGradients,
    Term,
    WeightGradients,
    pairs_are_cheaper,
)
from symlearn._kernel_recording import NotLayerwiseError, Recording, Use, misused, record, run

# Bytes of the features that are kept at a time, and of what the features of one chunk are made from.
STORED, WORKING = 2**30, 2**28
# A rounding may turn a rectifier on or off, which moves a gradient; samples that interact move it by far more.
_SAME_GRADIENT = 0.05


class FeatureMap:
    """Maps samples to the features of every term of the kernel.

    Attributes
    ----------
    terms : list of Term
        Shares of the kernel; those of layers come first.
    n_outputs : int
        Outputs of the model per sample.
    n_bytes, step : int
        Size of the features of one sample; samples that are processed at once.
    dtype : torch.dtype
        Of the features.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, outputs: str, chunk_size: int, n_samples: int, layerwise: bool
    ) -> None:
        self.model, self.device = model, x.device
        self.params = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.ids = {id(parameter): name for name, parameter in self.params.items()}
        self.dtype = torch.float32
        for parameter in self.params.values():
            self.dtype = torch.promote_types(self.dtype, parameter.dtype)
        self.index = _witness(min(len(x), chunk_size))
        alone = _run_alone(model, x[self.index : self.index + 1], self.ids if layerwise else None)
        self.output = _check_output(alone.output)
        self.n_outputs = self.output.numel()
        self.cotangents = torch.eye(self.n_outputs, dtype=self.output.dtype, device=x.device)
        if outputs == "sum":
            self.cotangents = self.cotangents.sum(0, keepdim=True)
        # A mixture of the cotangents, by which single gradients are compared.
        self.weights = torch.linspace(1, 2, len(self.cotangents), dtype=self.output.dtype, device=x.device)
        self._choose_terms(alone, outputs == "full", n_samples, x)
        self.n_bytes = self.dtype.itemsize * sum(math.prod(shape) for term in self.terms for shape in term.shapes)
        self.step = max(1, min(chunk_size, WORKING // self._working_bytes(alone.uses or [], x)))

    def of(self, x: Tensor) -> list[Features]:
        """Features of each term for all samples."""
        features = self._allocate(self.terms, len(x))
        for start in range(0, len(x), self.step):
            piece = slice(start, start + self.step)
            self._fill([tuple(tensor[piece] for tensor in each) for each in features], x[piece])
        return features

    def _allocate(self, terms: Iterable[Term], n_samples: int) -> list[Features]:
        like = torch.empty((), dtype=self.dtype, device=self.device)
        return [term.allocate(n_samples, like) for term in terms]

    def _choose_terms(self, alone: Recording, per_output: bool, n_samples: int, x: Tensor) -> None:
        """Terms of layers for the parameters that only layers use, Jacobians for all others."""
        uses = alone.uses or []
        others, unused = (set(self.params), set[str]()) if alone.uses is None else misused(alone, self.ids)
        n_outputs = len(self.cotangents)
        self.terms = _layer_terms(uses, others, n_outputs, per_output, n_samples, self.dtype.itemsize)
        self.signatures = [use.signature for use in uses] if self.terms else []
        explained = {name for term in self.terms for name in term.names}
        self.unexplained = [name for name in self.params if name not in explained | unused]
        mixture = self.weights @ self.cotangents
        self.alone: list[Features] = []
        self.vectorised = False
        if self.terms:
            batch = Pass(uses, self._gradients(uses, self.output[None], mixture[None]))
            self.alone = self._single(self.terms, batch)
        if self.unexplained:
            self.vectorised = self._vmap_agrees(x[self.index : self.index + 1], mixture)
        self.terms += [Gradients(name, (), self.params[name].numel(), n_outputs) for name in self.unexplained]
        if not self.terms:
            raise invalid("model", "differentiable in a trainable parameter", "an output that depends on none of them")

    @property
    def epsilon(self) -> float:
        """Relative rounding of the model's numbers."""
        return torch.finfo(self.output.dtype).eps

    def _single(self, terms: Sequence[Term], batch: Pass) -> list[Features]:
        """Features of a batch of one sample with one output."""
        singles = [_single_term(term) for term in terms]
        features = self._allocate(singles, 1)
        for term, each in zip(singles, features, strict=True):
            for use, destination in term.destinations(each).items():
                destination.copy_(batch.gradients[use])
            term.fill(each, batch)
        return features

    def _working_bytes(self, uses: Sequence[Use], x: Tensor) -> int:
        """What one sample takes while its features are made: activations, their gradients, patches, Jacobians."""
        n_unexplained = sum(self.params[name].numel() for name in self.unexplained)
        n_numbers = 4 * math.prod(x.shape[1:]) + 2 * len(self.cotangents) * n_unexplained
        for use in uses:
            n_numbers += (4 + len(self.cotangents)) * math.prod(use.shape[1:])
            if use.kind == "convolution":
                n_numbers += math.prod(use.geometry[0]) * math.prod(use.given.shape[1:])
        return self.dtype.itemsize * max(1, n_numbers)

    def _fill(self, features: Sequence[Features], x: Tensor) -> None:
        """Write the features of a batch."""
        batch = Pass()
        if self.signatures:
            destinations: dict[int, Tensor] = {}
            for term, each in zip(self.terms, features, strict=True):
                destinations |= term.destinations(each)
            batch, output = self._layer_pass(x, self.cotangents, destinations)
        if self.unexplained:
            batch = replace(batch, jacobians=self._jacobians(x, self.cotangents))
        for term, each in zip(self.terms, features, strict=True):
            term.fill(each, batch)
        if self.alone:
            self._verify(features, x, output)
            self.alone = []

    def _layer_pass(self, x: Tensor, cotangents: Tensor, destinations: Mapping[int, Tensor]) -> tuple[Pass, Tensor]:
        """Inputs and output gradients of all layers for a batch, and the output."""
        try:
            recording = record(self.model, x.clone(), self.ids)
            uses, output = recording.uses or [], recording.output.reshape(len(x), self.n_outputs)
        except Exception as error:  # whatever the model cannot do with a batch
            raise NotLayerwiseError from error
        explained = {name for term in self.terms if term.names[0] not in self.unexplained for name in term.names}
        same = [use.signature for use in uses] == self.signatures and not recording.others & explained
        if not same or len(recording.output) != len(x):
            raise NotLayerwiseError
        gradients = self._gradients(uses, output, cotangents, destinations)
        if any(use.given._version != use.version for use in uses):
            raise NotLayerwiseError
        return Pass(uses, gradients), output.detach()

    def _gradients(
        self, uses: Sequence[Use], output: Tensor, cotangents: Tensor, destinations: Mapping[int, Tensor] | None = None
    ) -> list[Tensor]:
        """Output gradients of each layer, (n, outputs, units, positions), in the destinations where given."""
        edges = [use.edge for use in uses]
        shape, options = (len(output), len(cotangents)), {"dtype": self.dtype, "device": self.device}
        rooms = [torch.empty(*shape, *use.units, **options) for use in uses]  # type: ignore[call-overload]
        for index, destination in (destinations or {}).items():
            rooms[index] = destination
        for index, cotangent in enumerate(cotangents):
            direction = cotangent.expand(len(output), -1).contiguous()
            found = torch.autograd.grad(output, edges, direction, retain_graph=True, allow_unused=True)
            for use, room, gradient in zip(uses, rooms, found, strict=True):
                room[:, index] = 0 if gradient is None else use.by_unit(gradient)
        return rooms

    def _verify(self, features: Sequence[Features], x: Tensor, output: Tensor) -> None:
        """Refuse a batch in which a sample differs from what it is alone."""
        terms = self.terms[: len(self.alone)]
        for index in range(len(x)) if len(x) < 4 else [min(self.index, _witness(len(x)))]:
            alone, expected = self.alone, self.output.detach()
            if index != self.index:
                mixture = (self.weights @ self.cotangents)[None]
                batch, outputs = self._layer_pass(x[index : index + 1], mixture, {})
                alone, expected = self._single(terms, batch), outputs[0]
            pairs: list[tuple[Tensor, Tensor]] = []
            for term, one, together in zip(terms, alone, features, strict=False):
                mixed = tuple(
                    each[index : index + 1] if axis is None else self._mixed(each[index : index + 1], axis)
                    for each, axis in zip(together, term.output_axes, strict=True)
                )
                pairs += zip(_single_term(term).compared(mixed), _single_term(term).compared(one), strict=True)
            scale, length = max(float(each.norm()) for _, each in pairs), float(output.norm(dim=1).max())
            same_output = self._agree([(output[index], expected)], math.sqrt(self.epsilon), length)
            if not same_output or not self._agree(pairs, _SAME_GRADIENT, scale):
                raise NotLayerwiseError

    def _agree(self, pairs: Iterable[tuple[Tensor, Tensor]], tolerance: float, scale: float) -> bool:
        """Whether both of each pair are the same, up to a rounding of numbers of the given scale."""
        rounding = 1e3 * self.epsilon * scale
        return all(bool((one - other).norm() <= tolerance * other.norm() + rounding) for one, other in pairs)

    def _mixed(self, features: Tensor, axis: int) -> Tensor:
        weights = self.weights.to(self.dtype)
        return (features.movedim(axis, -1) @ weights).unsqueeze(axis)

    def _vmap_agrees(self, x: Tensor, mixture: Tensor) -> bool:
        """Whether all samples can be differentiated at once: the gradients of this one are those of autograd."""
        params = [self.params[name] for name in self.unexplained]
        expected = _gradients_of(self.output, params, mixture, retain_graph=False)
        try:
            found = self._vectorised_jacobians(x, mixture[None])
        except Exception as error:
            if "randomness" in str(error):
                raise random_model() from error
            return False
        scale = max(float(each.norm()) for each in expected)
        pairs = ((one[0, 0], other.flatten()) for one, other in zip(found.values(), expected, strict=True))
        return self._agree(pairs, _SAME_GRADIENT, scale)

    def _jacobians(self, x: Tensor, cotangents: Tensor) -> dict[str, Tensor]:
        """Gradients (n, outputs, size) of the parameters outside of layers, for each sample alone."""
        if self.vectorised:
            return self._vectorised_jacobians(x, cotangents)
        params = [self.params[name] for name in self.unexplained]
        rows = []
        for sample in x.clone().split(1):
            output = run(self.model, sample).reshape(-1)
            if len(output) != self.n_outputs:
                raise invalid("model", "of as many outputs for each sample", f"{len(output)} and {self.n_outputs}")
            rows += [_gradients_of(output, params, cotangent, retain_graph=True) for cotangent in cotangents]
        columns = zip(self.unexplained, zip(*rows, strict=True), strict=True)
        return {name: torch.stack(each).view(len(x), len(cotangents), -1) for name, each in columns}

    def _vectorised_jacobians(self, x: Tensor, cotangents: Tensor) -> dict[str, Tensor]:
        constants = {name: each.detach().clone() for name, each in self.model.named_buffers()}
        constants |= {name: each.detach() for name, each in self.model.named_parameters()}
        touched = {name: constants.pop(name) for name in self.unexplained}

        def outputs(params: dict[str, Tensor], sample: Tensor) -> Tensor:
            output: Tensor = functional_call(self.model, {**constants, **params}, (sample[None],))
            return output.reshape(-1)

        def gradients(sample: Tensor) -> dict[str, Tensor]:
            pull = vjp(lambda params: outputs(params, sample), touched)[1]
            found: dict[str, Tensor] = vmap(lambda cotangent: pull(cotangent)[0])(cotangents)
            return found

        # The mathematical form of attention is the one that vmap knows.
        with sdpa_kernel(SDPBackend.MATH):
            found = vmap(gradients, randomness="error")(x.clone())
        return {name: each.detach().flatten(2) for name, each in found.items()}


def random_model() -> ValueError:
    """The error for a model that draws random numbers."""
    return invalid("model", "deterministic (call model.eval())", "a random operation")


def check_batch(model: nn.Module, x: Tensor) -> None:
    """Refuse a model that does not return one row per sample."""
    n_samples = min(2, len(x))
    with torch.no_grad():
        try:
            output = run(model, x[:n_samples].clone())
        except Exception as error:
            raise _refused(x, error) from error
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    if n_samples > 1 and (not shape or shape[0] != n_samples):
        raise invalid("model", "a map from each sample to its outputs", f"shape {shape} for {n_samples} samples")


def _witness(n_samples: int) -> int:
    """The sample that is compared: not the first, last or middle one, which may be alike in a batch and alone."""
    return n_samples // 3


def _run_alone(model: nn.Module, x: Tensor, ids: Mapping[int, str] | None) -> Recording:
    """The output of one sample, with its layers if they can be known and are wanted."""
    if ids is not None:
        try:
            return record(model, x.clone(), ids)
        except Exception:  # an error that does not come from the watch comes again
            pass
    try:
        return Recording(None, set(), run(model, x.clone()))
    except Exception as error:
        raise _refused(x, error) from error


def _refused(x: Tensor, error: Exception) -> ValueError:
    reason = (str(error).splitlines() or [""])[0]
    return invalid(
        "x1", "a batch that model accepts", f"shape {tuple(x.shape)}, {x.dtype} ({type(error).__name__}: {reason})"
    )


def _check_output(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise wrong_type("model", "one that returns a tensor", output)
    if not output.is_floating_point():
        raise invalid("model", "one with real, differentiable outputs", f"outputs of {output.dtype}")
    if not output.numel():
        raise invalid("model", "one with at least one output", f"shape {tuple(output.shape)}")
    if not output.requires_grad:
        raise invalid("model", "differentiable in a trainable parameter", "an output that depends on none of them")
    return output.reshape(-1)


def _gradients_of(
    output: Tensor, params: Sequence[Tensor], direction: Tensor, *, retain_graph: bool
) -> tuple[Tensor, ...]:
    try:
        return torch.autograd.grad(
            output, params, direction, retain_graph=retain_graph, allow_unused=True, materialize_grads=True
        )
    except RuntimeError as error:
        raise invalid("model", "differentiable by torch.autograd.grad", str(error).splitlines()[0]) from error


def _single_term(term: Term) -> Any:
    return replace(term, n_outputs=1)  # type: ignore[type-var]


def _layer_terms(
    uses: Sequence[Use], others: set[str], n_outputs: int, per_output: bool, n_samples: int, itemsize: int
) -> list[Term]:
    """A term for each parameter that only layers use."""
    weights: dict[str, list[int]] = {}
    biases: dict[str, list[int]] = {}
    for index, use in enumerate(uses):
        for name, found in ((use.weight, weights), (use.bias, biases)):
            if name:
                found.setdefault(name, []).append(index)
    both = set(weights) & set(biases)
    terms: list[Term] = []
    for name, indices in weights.items():
        if name in others | both or len({uses[index].kind for index in indices}) > 1:
            continue
        term = _weight_term(name, indices, uses, n_outputs, per_output, n_samples, itemsize)
        if isinstance(term, OuterProducts) and biases.get(term.bias) == indices and term.bias not in others | both:
            biases.pop(term.bias)
        elif isinstance(term, OuterProducts):
            term = replace(term, bias="")
        terms.append(term)
    for name, indices in biases.items():
        if name not in others | both:
            terms.append(BiasGradients(name, tuple(indices), uses[indices[0]].units[0], n_outputs))
    return terms


def _weight_term(
    name: str,
    indices: Sequence[int],
    uses: Sequence[Use],
    n_outputs: int,
    per_output: bool,
    n_samples: int,
    itemsize: int,
) -> Term:
    use = uses[indices[0]]
    n_out, n_positions = use.units
    if use.kind == "normalisation":
        return ScaleGradients(name, tuple(indices), n_out, n_outputs)
    n_in = math.prod(use.geometry[0]) * use.given.shape[1] // use.groups if use.geometry else use.given.shape[-1]
    if len(indices) == 1 and use.kind == "linear" and use.given.ndim == 2:
        return OuterProducts(indices[0], name, use.bias, n_in, n_out, n_outputs)
    n_passes = 1 + n_samples * n_outputs * n_out * n_in * itemsize // (2 * STORED)
    sizes = n_in, n_out, n_positions, n_outputs
    if len(indices) == 1 and use.groups == 1 and pairs_are_cheaper(*sizes, per_output, n_samples, n_passes):
        return PositionPairs(indices[0], name, n_in, n_out, n_positions, n_outputs)
    return WeightGradients(name, tuple(indices), n_out * n_in, n_outputs)
