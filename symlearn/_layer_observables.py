"""The observables of one network, at one moment of a training that need not be ours."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from symlearn._checks import invalid, wrong_type
from symlearn._observables import layer_statistics
from symlearn._rule_steps import bare, chain, has_feedback

_MIXING = (nn.GLU, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention)


def layer_observables(model: nn.Sequential, probe: Tensor) -> np.ndarray:
    r"""The 24 observables of every ``Linear`` and ``Conv2d`` layer of a model.

    Record them at a few checkpoints of any training, stack them over time, and classify the trajectory. Their names, in
    order, are those of ``TrajectoryDataset.names``.

    Parameters
    ----------
    model : nn.Sequential
        A chain of layers; it is evaluated as a copy in evaluation mode, and not changed.
    probe : Tensor, shape (stimuli, ...)
        Inputs for which activities are recorded, the same at all checkpoints.

    Returns
    -------
    ndarray of float64, shape (layers, 24)
        13 of the weights, 8 of the activity after the elementwise function that follows the layer, 3 of the gain
        :math:`\frac1{n_l}\sum_{ji}\partial h_{l,j}/\partial h_{l-1,i}`.

    Raises
    ------
    TypeError
        If the model is no ``nn.Sequential``, or the probe no tensor.
    ValueError
        For a model that ``learning_rule`` would refuse, stimuli that it does not accept, or values not finite.

    References
    ----------
    Nayebi et al. 2020; chapter :doc:`/chapters/learning_rules`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> layer_observables(model, torch.randn(20, 4, generator=torch.Generator().manual_seed(0))).shape
    (2, 24)
    """
    if not isinstance(model, nn.Sequential):
        raise wrong_type("model", "a torch.nn.Sequential", model)
    layers = [layer for _, layer in chain(copy.deepcopy(model).eval())]
    reference = next(value for layer in layers for value in layer.parameters())
    values, rows = _check_probe(probe).to(reference.device, reference.dtype), []
    while layers:
        layer = layers.pop(0)
        follower = layers.pop(0) if has_feedback(layer) and layers and _is_elementwise(layers[0]) else nn.Identity()
        try:
            with torch.no_grad():
                totals = layer(values)
            activity, slopes = _with_slopes(follower, totals)
            if has_feedback(layer):
                with torch.no_grad():
                    fans = bare(layer)(torch.ones_like(values), layer.weight)
                rows.append(_row(layer.weight, activity, slopes * fans))
            values = activity
        except (RuntimeError, ValueError) as error:
            raise invalid("probe", "stimuli that the model accepts", f"{tuple(probe.shape)} ({error})") from error
    found = np.stack(rows)
    if not np.isfinite(found).all():
        raise invalid("model", "of finite weights and activity", "inf or nan")
    return found


def _check_probe(probe: Any) -> Tensor:
    if not isinstance(probe, Tensor):
        raise wrong_type("probe", "a tensor", probe)
    if probe.ndim < 2 or probe.numel() == 0:
        raise invalid("probe", "of shape (stimuli, ...)", f"shape {tuple(probe.shape)}")
    if probe.is_complex() or not bool(probe.isfinite().all()):
        raise invalid("probe", "finite real numbers", "complex numbers" if probe.is_complex() else "inf or nan")
    return probe.detach()


def _is_elementwise(layer: Any) -> bool:
    return type(layer).__module__ == "torch.nn.modules.activation" and not isinstance(layer, _MIXING)


def _with_slopes(follower: nn.Module, totals: Tensor) -> tuple[Tensor, Tensor]:
    """Values of an elementwise function, and its derivatives."""
    with torch.enable_grad():
        leaf = totals.detach().clone().requires_grad_()
        values = follower(leaf)
        (slopes,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), slopes


def _row(weight: Tensor, activity: Tensor, gain: Tensor) -> np.ndarray:
    """The 24 observables; the gain comes per unit, summed over the inputs."""
    gains = gain.flatten(1).mean(1)
    weights, activities, means = (
        each.detach().double().numpy(force=True)[None] for each in (weight.flatten(), activity.flatten(1), gains)
    )
    with np.errstate(all="ignore"):
        return layer_statistics(weights, activities, means)[0]
