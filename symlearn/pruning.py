"""Pruning at initialisation by conserving synaptic flow.

Saliencies of the form gradient times weight are conserved: what flows into a unit flows out of it. This is why one-shot
pruning empties the largest layers first, and why SynFlow, which scores again and again with positive conserved
saliencies, does not. Chapter :doc:`/chapters/pruning`; Tanaka, Kunin, Yamins and Ganguli, NeurIPS 2020
(arXiv:2006.05467).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from symlearn._checks import check_choice, check_int, check_scalar, invalid, wrong_type
from symlearn._saliency import (
    PRUNABLE,
    Layers,
    OutOfRange,
    Scorer,
    alive_masks,
    check_data,
    check_finite_scores,
    check_input_shape,
    check_layers,
    check_loss_fn,
    check_masks,
    device_of,
    flow,
    flow_replica,
    gradients,
    is_connected,
    isolated,
    loss,
    make_scorer,
    replica,
    weight_of,
    weight_shape,
)
from symlearn._synflow import SynFlowLoop, one_thread

__all__ = [
    "LayerConservation",
    "PruningResult",
    "conservation",
    "critical_compression",
    "max_compression",
    "prune",
    "score",
]

Count = int | dict[str, int]

_LARGE = 2**18  # weights from which SynFlow takes the fast loop
_HUGE = 2**22  # weights from which it iterates in float32
_LARGE_INPUT = 2**15  # size of an input from which several threads pay


@dataclass(frozen=True)
class PruningResult:
    """What :func:`prune` did.

    Attributes
    ----------
    masks : dict of str to Tensor
        True where a weight is kept; the keys of :func:`score`, the shapes of the weights.
    method : str
        The scorer.
    compression : float
        The compression asked for; the one reached is ``n_total / n_kept``.
    n_total, n_kept : int
        Number of weights before and after.
    layer_density : dict of str to float
        Fraction of kept weights in each layer; the keys of ``masks``.
    collapsed_layers : tuple of str
        Layers without any weight left, by their keys.
    connected : bool or None
        Whether any path from inputs to outputs is left (synaptic flow of the masked network > 0). None when
        ``input_shape`` was not given.
    """

    masks: dict[str, Tensor]
    method: str
    compression: float
    n_total: int
    n_kept: int
    layer_density: dict[str, float]
    collapsed_layers: tuple[str, ...]
    connected: bool | None


@dataclass(frozen=True)
class LayerConservation:
    """Saliency that flows into and out of the units (or channels) of one layer.

    Attributes
    ----------
    inflow : Tensor, shape (units,)
        Sum of the saliencies of the weights into each unit, plus that of its bias; float64.
    outflow : Tensor, shape (units,), or None
        Sum over the weights which read the unit; None when no consumer is known, as for the last layer.
    residual : float
        Largest difference of the two, relative to the largest inflow; nan without a consumer.
    total : float
        Sum of the saliencies of all weights of the layer.
    """

    inflow: Tensor
    outflow: Tensor | None
    residual: float
    total: float


def score(
    model: nn.Module,
    method: str = "synflow",
    *,
    input_shape: tuple[int, ...] | None = None,
    data: tuple[Tensor, Tensor] | None = None,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    r"""Importance of every weight of the Linear and convolutional layers: the larger, the more it should be kept.

    With :math:`g = \nabla_w L` over these weights, in eval mode:

    ============= ==============================================================================================
    ``synflow``   :math:`|w| \, \partial R / \partial |w|`, where :math:`R` is the sum of the outputs for an input
                  of ones, with absolute weights, without biases and batch-norm shifts and means
    ``snip``      :math:`|g w|`
    ``grasp``     :math:`w \, (H g)`, signed, without temperature
    ``magnitude`` :math:`|w|`
    ``random``    uniform in [0, 1)
    ============= ==============================================================================================

    Parameters
    ----------
    model : nn.Module
        Any module; only read. Weights already pruned by ``torch.nn.utils.prune`` count as 0.
    method : {"synflow", "snip", "grasp", "magnitude", "random"}
        The scorer.
    input_shape : tuple of int, optional
        Shape of one input, without the batch axis. Needed for ``synflow``.
    data : (inputs, targets), optional
        One batch. Needed for ``snip`` and ``grasp``.
    loss_fn : callable, optional
        ``loss_fn(output, target)``, a scalar; by default the mean cross-entropy.
    masks : mapping of str to Tensor, optional
        Score the network with only these weights (True or 1: there; a layer that is not named is whole). What is
        masked scores 0.
    generator : torch.Generator, optional
        For ``random``.

    Returns
    -------
    dict of str to Tensor
        ``"<module>.weight"`` for each ``nn.Linear`` and ``nn.Conv1d/2d/3d`` in ``named_modules()`` order, of the shape
        of the weight. Float64 for ``synflow`` and ``random``, otherwise of the dtype of the weight. Several modules
        that hold the same tensor are one layer, under the first name, and its score is the sum over them.

    Raises
    ------
    ValueError
        If the method is unknown or lacks its ``input_shape`` or ``data``, the model has no such layer or does not
        accept the input, a mask has a wrong name, shape or value, or scores or total flow are not finite.
    TypeError
        If an argument has the wrong type.

    Notes
    -----
    Each layer's SynFlow scores sum to :math:`R` in a chain of layers; with skip connections, to the layer's share of
    the paths. GELU, SiLU, tanh, layer norm and attention break the conservation: scores are still the derivative above,
    but what is said about layer collapse no longer follows. For the flow every parameter with "bias" in its name is 0,
    every other parameter is replaced by its absolute value, and a batch norm without running statistics has variance 1.

    References
    ----------
    Tanaka et al., NeurIPS 2020; SNIP: Lee, Ajanthan and Torr, ICLR 2019; GraSP: Wang, Zhang and Grosse, ICLR 2020.
    Chapter :doc:`/chapters/pruning`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.tensor([[1, -2], [0.5, 0.5], [3, 0]]))
    ...     _ = model[2].weight.copy_(torch.tensor([[1, -4, 0.5], [2, 1, 0]]))
    >>> scores = score(model, input_shape=(2,))
    >>> scores["0.weight"]
    tensor([[3.0000, 6.0000],
            [2.5000, 2.5000],
            [1.5000, 0.0000]], dtype=torch.float64)
    >>> {name: float(values.sum()) for name, values in scores.items()}
    {'0.weight': 15.5, '2.weight': 15.5}
    """
    layers = check_layers(model)
    new_scorer = make_scorer(model, method, input_shape, data, loss_fn, generator)
    alive = check_masks(masks, alive_masks(layers))
    with isolated(device_of(layers)):
        try:
            return new_scorer()(alive)
        except OutOfRange as error:
            raise _range_error(error) from None


def prune(
    model: nn.Module,
    method: str = "synflow",
    *,
    compression: float,
    input_shape: tuple[int, ...] | None = None,
    data: tuple[Tensor, Tensor] | None = None,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    iterations: int | None = None,
    schedule: Literal["exponential", "linear"] = "exponential",
    scope: Literal["global", "layer"] = "global",
    generator: torch.Generator | None = None,
    inplace: bool = True,
) -> PruningResult:
    r"""Prune a network to a given compression, in rounds of scoring and removing.

    Round :math:`k` of :math:`n` scores the masked network and keeps its best ``max(1, round(N * f))`` weights, with
    :math:`f = \rho^{-k/n}` (exponential) or :math:`1 - (1 - 1/\rho) k / n` (linear) for compression :math:`\rho`. Of
    equal scores the one with the lower index in the concatenation of all weights is kept. A pruned weight never comes
    back.

    Parameters
    ----------
    model : nn.Module
        Any module with Linear or convolutional layers. Weights it has pruned already count among the pruned ones.
    method : {"synflow", "snip", "grasp", "magnitude", "random"}
        The scorer, see :func:`score`.
    compression : float
        Weights before over weights after, between 1 and the number of weights. Biases and the parameters of other
        layers are neither pruned nor counted.
    input_shape : tuple of int, optional
        Shape of one input, without the batch axis. Needed for ``synflow``; with it, ``connected`` is reported.
    data : (inputs, targets), optional
        One batch. Needed for ``snip`` and ``grasp``.
    loss_fn : callable, optional
        ``loss_fn(output, target)``, a scalar; by default the mean cross-entropy.
    iterations : int, optional
        Number of rounds; by default 100 for ``synflow`` and 1 for the others.
    schedule : {"exponential", "linear"}
        How the density falls with the rounds.
    scope : {"global", "layer"}
        Compare the scores of all layers, or apply the same rule to each layer on its own.
    generator : torch.Generator, optional
        For ``random``.
    inplace : bool
        True: apply ``torch.nn.utils.prune.custom_from_mask`` to every layer, so that ``weight_orig`` is the parameter
        and ``weight_mask`` a buffer (build optimisers afterwards; ``prune.remove(module, "weight")`` makes it
        permanent). False: leave the model as it is.

    Returns
    -------
    PruningResult
        Masks, counts, densities, empty layers, and whether the network is still connected.

    Raises
    ------
    ValueError
        As :func:`score`; or if ``compression`` is below 1, above the number of weights or not finite, ``iterations`` is
        below 1, ``schedule`` or ``scope`` is unknown, or a weight is computed by another reparametrisation than
        ``torch.nn.utils.prune`` and the masks are to be applied.
    TypeError
        If an argument has the wrong type.

    Notes
    -----
    Up to 262144 weights SynFlow iterates with the scores of :func:`score`; above, each layer is reduced to its living
    rows and columns, in float64 up to 4194304 weights and in float32 beyond. Counts are always exact. In float32 a few
    weights near the threshold are exchanged, and as the rounds amplify any difference, the final masks of a large
    network differ from those of float64 in several per cent of the kept weights. Where the flow leaves the range, its
    scale is split evenly between inputs and outputs, or over the layers of a chain, which changes no ranking.

    References
    ----------
    Tanaka et al., NeurIPS 2020, algorithm 1; chapter :doc:`/chapters/pruning`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.tensor([[1, -2], [0.5, 0.5], [3, 0]]))
    ...     _ = model[2].weight.copy_(torch.tensor([[1, -4, 0.5], [2, 1, 0]]))
    >>> result = prune(model, compression=6, input_shape=(2,))
    >>> result.n_kept, result.connected, result.collapsed_layers
    (2, True, ())
    >>> model[0].weight_mask
    tensor([[0., 1.],
            [0., 0.],
            [0., 0.]])
    """
    layers = check_layers(model)
    new_scorer = make_scorer(model, method, input_shape, data, loss_fn, generator)
    alive = alive_masks(layers)
    sizes = {key: mask.numel() for key, mask in alive.items()}
    ratio = _check_compression(compression, sum(sizes.values()))
    n_rounds = check_int("iterations", iterations, 1) if iterations is not None else 100 if method == "synflow" else 1
    check_choice("schedule", schedule, ("exponential", "linear"))
    check_choice("scope", scope, ("global", "layer"))
    if not isinstance(inplace, bool):
        raise wrong_type("inplace", "a bool", inplace)
    if inplace:
        _check_maskable(layers)
    plan = _plan(sizes, ratio, n_rounds, schedule, scope)
    with isolated(device_of(layers)):
        if method == "synflow":
            masks = _pruned_by_flow(model, new_scorer, alive, plan, input_shape or ())
        else:
            masks = _pruned(new_scorer, alive, plan)
        connected = None if input_shape is None else is_connected(model, masks, input_shape)
    if inplace:
        for key, modules in layers.items():
            for module in modules:
                torch_prune.custom_from_mask(module, "weight", masks[key])
    return _result(masks, method, ratio, connected)


def conservation(
    model: nn.Module,
    *,
    input_shape: tuple[int, ...] | None = None,
    data: tuple[Tensor, Tensor] | None = None,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> dict[str, LayerConservation]:
    r"""Check of the conservation of saliency, unit by unit.

    For a unit with :math:`\phi(z) = \phi'(z) z` whose activation is only read by the weights :math:`v`,
    :math:`\sum_i S(w_i) + S(b) = \sum_k S(v_k)` with :math:`S = \theta \, \partial R / \partial \theta`. A unit of a
    convolution is a channel. Computed in float64, in eval mode.

    Parameters
    ----------
    model : nn.Module
        Any module; only read.
    input_shape : tuple of int, optional
        Shape of one input: :math:`R` is the synaptic flow (absolute weights, no biases).
    data : (inputs, targets), optional
        One batch: :math:`R` is its loss. Exactly one of ``input_shape`` and ``data`` is needed.
    loss_fn : callable, optional
        ``loss_fn(output, target)``, a scalar; by default the mean cross-entropy.
    pairs : sequence of (producer, consumer), optional
        Which layer reads which, by module names; a producer with several consumers appears several times. By default
        each layer is read by the next in the order of execution, as in a chain, where the widths fit. A Linear behind
        a flattened map groups its inputs by channel.

    Returns
    -------
    dict of str to LayerConservation
        For each Linear and convolutional layer, by module name.

    Raises
    ------
    ValueError
        If not exactly one of ``input_shape`` and ``data`` is given, a pair names an unknown layer or one whose width
        does not fit, or saliencies are not finite.
    TypeError
        If an argument has the wrong type.

    References
    ----------
    Tanaka et al., NeurIPS 2020, theorems 1 and 2; chapter :doc:`/chapters/pruning`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.tensor([[1, -2], [0.5, 0.5], [3, 0]]))
    ...     _ = model[2].weight.copy_(torch.tensor([[1, -4, 0.5], [2, 1, 0]]))
    >>> hidden = conservation(model, input_shape=(2,))["0"]
    >>> hidden.inflow, hidden.outflow
    (tensor([9.0000, 5.0000, 1.5000], dtype=torch.float64), tensor([9.0000, 5.0000, 1.5000], dtype=torch.float64))
    >>> hidden.residual, hidden.total
    (0.0, 15.5)
    """
    layers = check_layers(model)
    if (input_shape is None) == (data is None):
        raise invalid("input_shape or data", "given, and only one of them", "none" if data is None else "both")
    shape, batch, criterion = check_input_shape(input_shape), check_data(data), check_loss_fn(loss_fn)
    names = [name for name, module in model.named_modules() if isinstance(module, PRUNABLE)]
    links = None if pairs is None else _check_pairs(pairs, names)
    ones = torch.ones(1, *(shape or ()), dtype=torch.float64, device=device_of(layers))
    with isolated(ones.device):
        twin = replica(model, torch.float64) if shape is None else flow_replica(model, torch.float64)
        modules = {name: twin.get_submodule(name) for name in names}
        order = _recorded_order(modules)
        leaves = {name: _weight_and_bias(module) for name, module in modules.items()}
        objective = flow(twin, ones) if batch is None else loss(twin, batch, criterion, ones)
        slopes = iter(gradients(objective, [leaf for pair in leaves.values() for leaf in pair]))
    saliencies = {
        name: [check_finite_scores(name, (leaf * next(slopes)).detach()) for leaf in pair]
        for name, pair in leaves.items()
    }
    if links is None:
        links = [("", producer, consumer) for producer, consumer in pairwise(order)]
    outflows = _outflows(modules, saliencies, links)
    return {name: _layer_conservation(values, outflows.get(name)) for name, values in saliencies.items()}


def max_compression(model: nn.Module) -> float:
    """Compression at which one weight per layer is left: number of weights over number of layers.

    Parameters
    ----------
    model : nn.Module
        Any module with Linear or convolutional layers.

    Returns
    -------
    float
        The largest compression that any algorithm can reach without emptying a layer.

    Raises
    ------
    ValueError
        If the model has no Linear or convolutional layer.
    TypeError
        If ``model`` is not a module.

    References
    ----------
    Tanaka et al., NeurIPS 2020, section 3; chapter :doc:`/chapters/pruning`.

    Examples
    --------
    >>> from symlearn.models import vgg16
    >>> round(max_compression(vgg16(width_divisor=8)), 1)
    16477.1
    """
    layers = check_layers(model)
    return sum(math.prod(weight_shape(modules[0])) for modules in layers.values()) / len(layers)


def critical_compression(scores: Mapping[str, Tensor]) -> float:
    """Largest compression that one round of global pruning by these scores reaches without emptying a layer.

    A layer is alive as long as the kept weights reach its best one: the result is the number of weights over the
    largest rank, in the descending order of all scores, of any layer's best weight. Of equal scores the one with the
    lower index in the concatenation of all layers comes first, as in :func:`prune`.

    Parameters
    ----------
    scores : mapping of str to Tensor
        As :func:`score` returns them.

    Returns
    -------
    float
        Between 1 and the number of weights per layer, :func:`max_compression`.

    Raises
    ------
    ValueError
        If there are no scores, or some are not finite.
    TypeError
        If the values are not real tensors.

    References
    ----------
    Chapter :doc:`/chapters/pruning`.

    Examples
    --------
    >>> import torch
    >>> critical_compression({"wide": torch.tensor([3.0, 2.5, 1.0, 0.5]), "narrow": torch.tensor([2.0, 0.1])})
    2.0
    """
    if not isinstance(scores, Mapping):
        raise wrong_type("scores", "a mapping from names to tensors", scores)
    if not scores:
        raise invalid("scores", "at least one layer", "none")
    values = [_check_scores(name, tensor) for name, tensor in scores.items()]
    best = torch.stack([layer.max() for layer in values])
    lowest = best.min()
    last = int((best == lowest).nonzero()[-1])
    # ranked before the best weight of the last layer to appear: what exceeds it, and its equals in earlier layers
    before = sum(int((layer > lowest).sum()) for layer in values)
    before += sum(int((layer == lowest).sum()) for layer in values[:last])
    return sum(layer.numel() for layer in values) / (before + 1)


def _pruned(new_scorer: Callable[[], Scorer], alive: dict[str, Tensor], plan: Sequence[Count]) -> dict[str, Tensor]:
    scorer = new_scorer()
    for count in plan:
        alive = _keep_best(scorer(alive), alive, count)
    return alive


def _pruned_by_flow(
    model: nn.Module,
    new_scorer: Callable[[], Scorer],
    alive: dict[str, Tensor],
    plan: Sequence[Count],
    input_shape: tuple[int, ...],
) -> dict[str, Tensor]:
    def fast(dtype: torch.dtype) -> dict[str, Tensor]:
        device = next(iter(alive.values())).device
        loop = SynFlowLoop(model, alive, torch.ones(1, *input_shape, dtype=dtype, device=device))
        for count in plan:
            loop.keep(count)
        return loop.masks()

    size = sum(mask.numel() for mask in alive.values())
    exact = partial(_pruned, new_scorer, alive, plan)
    attempts = [partial(fast, torch.float64), exact] if size >= _LARGE else [exact, partial(fast, torch.float64)]
    if size >= _HUGE:
        attempts.insert(0, partial(fast, torch.float32))
    errors = []
    for attempt in attempts:
        try:
            with one_thread() if math.prod(input_shape) < _LARGE_INPUT else nullcontext():
                return attempt()
        except OutOfRange as error:
            errors.append(error)
    raise _range_error(next((error for error in errors if str(error)), errors[0]))


def _keep_best(scores: dict[str, Tensor], alive: dict[str, Tensor], count: Count) -> dict[str, Tensor]:
    """Masks of the living weights with the highest scores; ``count`` in all, or per layer."""
    if isinstance(count, Mapping):
        return {
            key: _best(scores[key].flatten(), mask.flatten(), count[key]).view_as(mask) for key, mask in alive.items()
        }
    kept = _best(
        torch.cat([scores[key].flatten() for key in alive]),
        torch.cat([mask.flatten() for mask in alive.values()]),
        count,
    )
    parts = kept.split([mask.numel() for mask in alive.values()])
    return {key: part.view_as(mask) for (key, mask), part in zip(alive.items(), parts, strict=True)}


def _best(scores: Tensor, alive: Tensor, count: int) -> Tensor:
    candidates = alive.nonzero().squeeze(1)
    if count >= len(candidates):
        return alive
    values = scores[candidates]
    threshold = torch.kthvalue(values, len(values) - count + 1).values
    chosen = values > threshold
    ties = (values == threshold).nonzero().squeeze(1)
    chosen[ties[: count - int(chosen.sum())]] = True
    return torch.zeros_like(alive).index_fill_(0, candidates[chosen], True)


def _plan(sizes: Mapping[str, int], compression: float, n_rounds: int, schedule: str, scope: str) -> list[Count]:
    """How many weights each round keeps: in all, or per layer."""
    if scope == "global":
        return list(_counts(sum(sizes.values()), compression, n_rounds, schedule))
    per_layer = {key: _counts(size, compression, n_rounds, schedule) for key, size in sizes.items()}
    return [{key: counts[i] for key, counts in per_layer.items()} for i in range(n_rounds)]


def _counts(size: int, compression: float, n_rounds: int, schedule: str) -> list[int]:
    steps = range(1, n_rounds)
    if schedule == "exponential":
        densities = [compression ** (-step / n_rounds) for step in steps]
    else:
        densities = [1 - (1 - 1 / compression) * step / n_rounds for step in steps]
    return [max(1, round(kept)) for kept in (*(size * density for density in densities), size / compression)]


def _result(masks: dict[str, Tensor], method: str, compression: float, connected: bool | None) -> PruningResult:
    kept = {key: int(mask.sum()) for key, mask in masks.items()}
    return PruningResult(
        masks=masks,
        method=method,
        compression=compression,
        n_total=sum(mask.numel() for mask in masks.values()),
        n_kept=sum(kept.values()),
        layer_density={key: kept[key] / mask.numel() for key, mask in masks.items()},
        collapsed_layers=tuple(key for key, number in kept.items() if number == 0),
        connected=connected,
    )


def _recorded_order(modules: Mapping[str, nn.Module]) -> list[str]:
    """A list that fills with the names of the layers as they run, each at its first call."""
    order: list[str] = []

    def record(name: str, _module: nn.Module, _inputs: Any) -> None:
        if name not in order:
            order.append(name)

    for name, module in modules.items():
        module.register_forward_pre_hook(partial(record, name))
    return order


def _weight_and_bias(module: nn.Module) -> list[Tensor]:
    bias = module._parameters.get("bias", module._parameters.get("bias_orig"))
    return [leaf.requires_grad_() for leaf in (weight_of(module), bias) if leaf is not None]


def _outflows(
    modules: Mapping[str, nn.Module],
    saliencies: Mapping[str, list[Tensor]],
    links: Sequence[tuple[str, str, str]],
) -> dict[str, Tensor]:
    """Saliency of what reads each unit; links are (argument or nothing, producer, consumer)."""
    outflows: dict[str, Tensor] = {}
    for argument, producer, consumer in links:
        units = len(saliencies[producer][0])
        read = _saliency_by_input(saliencies[consumer][0], getattr(modules[consumer], "groups", 1))
        if len(read) % units == 0:
            outflow = read.view(units, -1).sum(dim=1)
            outflows[producer] = outflows[producer] + outflow if producer in outflows else outflow
        elif argument:
            raise invalid(argument, "layers of fitting widths", f"{units} units read as {len(read)} inputs")
    return outflows


def _saliency_by_input(saliency: Tensor, groups: int) -> Tensor:
    """Sum over outputs and kernel for each input channel, (in,)."""
    per_group = saliency.view(groups, len(saliency) // groups, saliency.shape[1], -1)
    return per_group.sum(dim=(1, 3)).flatten()


def _layer_conservation(saliencies: Sequence[Tensor], outflow: Tensor | None) -> LayerConservation:
    weight, *bias = saliencies
    inflow = sum(bias, weight.flatten(1).sum(dim=1))
    residual = math.nan
    if outflow is not None:
        difference, scale = (inflow - outflow).abs().max().item(), inflow.abs().max().item()
        residual = difference / scale if scale else math.inf if difference else 0.0
    return LayerConservation(inflow=inflow, outflow=outflow, residual=residual, total=weight.sum().item())


def _check_compression(compression: Any, n_total: int) -> float:
    ratio = check_scalar("compression", compression)
    if ratio < 1:
        raise invalid("compression", ">= 1", ratio)
    if ratio > n_total:
        raise invalid("compression", f"<= {n_total}, the number of weights", ratio)
    return ratio


def _check_maskable(layers: Layers) -> None:
    for key, modules in layers.items():
        for module in modules:
            pruned = "weight_orig" in module._parameters and "weight_mask" in module._buffers
            if not pruned and module._parameters.get("weight") is None:
                raise invalid("model", "free of reparametrised weights (remove them first)", f"one at {key!r}")


def _check_pairs(pairs: Any, names: Sequence[str]) -> list[tuple[str, str, str]]:
    if isinstance(pairs, str) or not isinstance(pairs, Sequence):
        raise wrong_type("pairs", "a sequence of (producer, consumer)", pairs)
    links = []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)):
            raise wrong_type(f"pairs[{i}]", "a (producer, consumer)", pair)
        if len(pair) != 2:
            raise invalid(f"pairs[{i}]", "a (producer, consumer)", f"{len(pair)} items")
        for name in pair:
            check_choice(f"pairs[{i}]", name, names)
        links.append((f"pairs[{i}]", pair[0], pair[1]))
    return links


def _check_scores(name: str, scores: Any) -> Tensor:
    if not isinstance(scores, Tensor):
        raise wrong_type(f"scores[{name!r}]", "a tensor", scores)
    if not scores.numel():
        raise invalid(f"scores[{name!r}]", "at least one number", f"shape {tuple(scores.shape)}")
    if scores.is_complex() or scores.dtype == torch.bool:
        raise wrong_type(f"scores[{name!r}]", "a tensor of real numbers", scores)
    if not scores.isfinite().all():
        raise invalid(f"scores[{name!r}]", "finite", "nan or inf")
    return scores.detach().double().flatten()


def _range_error(error: OutOfRange) -> ValueError:
    return invalid("the synaptic flow of model", "within the range of float64", str(error) or "inf or 0")
