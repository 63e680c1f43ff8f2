"""Cutting units out of the tensors of a model, and the numbers that its modules keep about their tensors."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from symlearn._audit_attention import AttentionOfFewerHeads
from symlearn._unit_symmetry import UnitPermutation

MOST_GUESSES = 6  # integers of hand-written modules that are tried together, in all subsets
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTS = ("weight", "weight_v", "original", "original1")  # with weight_norm and parametrizations
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Guess = tuple[str, str, Any]  # module, attribute, new value


class Refused(Exception):
    """A removal that no layout of the tensors can express."""


@dataclass(frozen=True, eq=False)
class Space:
    """Units that may be removed.

    Attributes
    ----------
    name : str
        First parameter that writes into the units; of heads "heads of" it.
    symmetry : UnitPermutation
    reading : tuple of bool
        Of each term: whether these entries read the units.
    dead : tuple of int
    copies : dict of int to int
        Units which do the same as another one, and that one.
    powers : dict of str to float
        By which power of the ratio of two parallel units each reading parameter differs.
    heads : bool
    """

    name: str
    symmetry: UnitPermutation
    reading: tuple[bool, ...]
    dead: tuple[int, ...]
    copies: dict[int, int]
    powers: dict[str, float]
    heads: bool = False

    @property
    def candidates(self) -> list[int]:
        """All units that might go."""
        return sorted({*self.dead, *self.copies})


Plan = list[tuple[Space, list[int]]]


def detached_copy(model: nn.Module) -> nn.Module:
    """A deep copy; a weight that a hook computes has none of its own, and is copied as a number."""
    computed = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed if not value.is_leaf})


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each under its first name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def owner_of(model: nn.Module, name: str) -> nn.Module:
    """The layer that a tensor belongs to: with a parametrization, the layer it parametrizes."""
    return model.get_submodule(_layer_path(name))


def cut(model: nn.Module, plan: Plan) -> list[Guess]:
    """Take the planned units out of the model, in place.

    Returns
    -------
    list of Guess
        Integers of hand-written modules that may have to follow.
    """
    dropped: dict[str, list[tuple[Tensor, list[int]]]] = defaultdict(list)
    for space, units in plan:
        for name, _, index in space.symmetry.terms:
            dropped[name].append((index, units))
    _free_attention(model, plan)
    tensors = tensors_of(model)
    lengths: dict[int, int] = {}
    owners = {}
    for name, terms in dropped.items():
        kept_rows, smaller = _smaller(tensors[name], terms)
        _replace(model, tensors[name], smaller)
        lengths |= {a: b for a, b in zip(tensors[name].shape, smaller.shape, strict=True) if a != b}
        owners[name] = owner_of(model, name)
        if isinstance(owners[name], CONVOLUTIONS) and name.rpartition(".")[2] in WEIGHTS:
            _regroup(owners[name], kept_rows)
    for module in owners.values():
        _update_sizes(module)
    heads = [(space.symmetry.units, len(units)) for space, units in plan if space.heads]
    return _guesses(model, list(owners), lengths, heads)


def merge(model: nn.Module, space: Space, units: Sequence[int]) -> None:
    """Add the outgoing weights of units that are copies to those of the units which stay, in place."""
    tensors = tensors_of(model)
    factors = {unit: ratio(tensors, space, space.copies[unit], unit) for unit in units if unit in space.copies}
    for (name, _, index), reads in roles_of(space):
        if not reads or not factors:
            continue
        rows = _unit_rows(tensors[name], index).clone()
        for unit, factor in factors.items():
            stays, goes = (_where(index, each) for each in (space.copies[unit], unit))
            rows[stays] += factor ** space.powers.get(name, 1.0) * rows[goes]
        with torch.no_grad():
            tensors[name].copy_(_from_rows(rows, index, tensors[name].shape))


def fold(model: nn.Module, plan: Plan, constants: dict[str, Tensor]) -> None:
    """Move what dead units contribute, if it is a constant other than 0, to the biases of their readers, in place."""
    with torch.no_grad():
        for space, units in plan:
            for (name, _, index), reading in roles_of(space):
                if not reading or name not in constants:
                    continue
                layer: Any = owner_of(model, name)
                dead = torch.isin(index, torch.tensor([unit for unit in units if unit in space.dead], dtype=torch.long))
                values = torch.where(dead.reshape(-1), constants[name].nan_to_num(0), 0)
                if bool(values.any()) and layer.bias is not None:
                    weight = layer.weight.double()
                    weight = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
                    layer.bias.add_((weight @ values.to(weight.device)).to(layer.bias.dtype))


def constant_inputs(model: nn.Module, names: Sequence[str], run: Any) -> dict[str, Tensor]:
    """What linear layers and convolutions read: constants over the data, nan for inputs that vary.

    ``model`` is a private copy; ``run`` calls it.
    """
    found: dict[str, Tensor] = {}
    handles = []
    for name in names:
        layer = owner_of(model, name)
        plain = isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and not isinstance(layer, TRANSPOSED)
        if not plain or getattr(layer, "groups", 1) > 1:
            continue

        def watch(module: nn.Module, args: Any, name: str = name) -> None:
            if not args or not isinstance(args[0], Tensor):
                return
            axis = -1 if isinstance(module, nn.Linear) else 1 - tensors_of(module)["weight"].ndim
            rows = args[0].detach().movedim(axis, 0).flatten(1)
            steady = (rows == rows[:, :1]).all(1)
            values = torch.where(steady, rows[:, 0], torch.nan)
            if name in found:
                values = torch.where(values == found[name], values, torch.nan)
            found[name] = values

        handles.append(layer.register_forward_pre_hook(watch))
    try:
        run(model)
    finally:
        for handle in handles:
            handle.remove()
    return found


def ratio(tensors: dict[str, Tensor], space: Space, stays: int, goes: int) -> float:
    """Incoming weights of one unit over those of another that is parallel to it; 1 where units have no scale."""
    squares = [0.0, 0.0]
    for (name, _, index), reads in roles_of(space):
        if not reads and name in space.powers:
            for place, unit in enumerate((stays, goes)):
                squares[place] += float(unit_entries(tensors[name], index, unit).square().sum())
    return math.sqrt(squares[1] / squares[0]) if squares[0] else 1.0


def unit_entries(tensor: Tensor, index: Tensor, unit: int) -> Tensor:
    """All entries of a unit, in double precision."""
    return _unit_rows(tensor, index)[_where(index, unit)].double().reshape(-1)


def roles_of(space: Space) -> list[tuple[tuple[str, float, Tensor], bool]]:
    """The terms of a space, and whether they read the units."""
    return list(zip(space.symmetry.terms, space.reading, strict=True))


def subsets(guesses: Sequence[Guess]) -> Iterator[list[Guess]]:
    """Small sets first; no attribute twice."""
    for size in range(1, len(guesses) + 1):
        for chosen in combinations(guesses, size):
            if len({guess[:2] for guess in chosen}) == size:
                yield list(chosen)


def apply_guesses(model: nn.Module, guesses: Sequence[Guess]) -> list[Guess]:
    """Set the attributes; the old values come back."""
    before = []
    for path, name, value in guesses:
        module = model.get_submodule(path)
        before.append((path, name, getattr(module, name)))
        setattr(module, name, value)
    return before


def kept_entries(shape: Sequence[int], terms: Sequence[tuple[Tensor, list[int]]]) -> int:
    """How many entries of a tensor stay when units are removed: a count from the index tensors alone."""
    rows, entries = _keep(shape, terms)
    count = 1
    for axis, keep in enumerate(rows):
        count *= int(keep.sum()) if axis > 1 or entries is None else 1
    return count * int((entries & rows[0][:, None] & rows[1]).sum()) if entries is not None else count


def _keep(shape: Sequence[int], terms: Sequence[tuple[Tensor, list[int]]]) -> tuple[list[Tensor], Tensor | None]:
    """What stays along every axis; and entry by entry of the first two, where units sit at pairs of them."""
    rows = [torch.ones(size, dtype=torch.bool) for size in shape]
    entries = None
    for index, units in terms:
        gone = torch.isin(index, torch.tensor(units, dtype=torch.long))
        varied = [axis for axis in range(index.ndim) if index.shape[axis] > 1]
        if len(varied) <= 1:
            axis = varied[0] if varied else (0 if shape[0] == 1 else -1)
            if axis < 0:
                raise Refused("one number belongs to several units")
            rows[axis] &= ~gone.reshape(-1)
        elif varied == [0, 1]:
            kept = ~gone.reshape(gone.shape[:2])
            entries = kept if entries is None else entries & kept
        else:
            raise Refused("its units fill several axes of a parameter")
    return rows, entries


def _layer_path(name: str) -> str:
    path = name.rpartition(".")[0]
    return path.rpartition("parametrizations.")[0].rstrip(".") if "parametrizations." in path else path


def _smaller(tensor: Tensor, terms: Sequence[tuple[Tensor, list[int]]]) -> tuple[Tensor, Tensor]:
    """What stays along the first axis, and the tensor that stays."""
    rows, entries = _keep(tensor.shape, terms)
    if any(not bool(keep.any()) for keep in rows):
        raise Refused("nothing would be left of a parameter")
    places = [keep.nonzero()[:, 0].to(tensor.device) for keep in rows]
    smaller = tensor.detach()
    for axis, place in enumerate(places):
        if entries is None or axis != 1:
            smaller = smaller.index_select(axis, place)
    if entries is not None:
        entries = (entries & rows[1])[rows[0]]
        counts = entries.sum(1)
        if int(counts.min()) == 0 or int(counts.min()) != int(counts.max()):
            raise Refused("its groups would differ in size")
        column = entries.nonzero()[:, 1].reshape(len(entries), -1).to(tensor.device)
        smaller = torch.stack([row.index_select(0, which) for row, which in zip(smaller, column, strict=True)])
    return rows[0], smaller.contiguous()


def _replace(model: nn.Module, old: Tensor, new: Tensor) -> None:
    """Put a tensor in the place of another one, wherever that is."""
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    for module in model.modules():
        for name in [name for name, value in module._parameters.items() if value is old]:
            setattr(module, name, new)  # of recurrent layers this keeps their list of weights up to date
        for name in [name for name, value in module._buffers.items() if value is old]:
            module._buffers[name] = new


def _regroup(layer: Any, kept_rows: Tensor) -> None:
    """Groups that lost all their rows are gone; the others must have equally many."""
    counts = kept_rows.reshape(layer.groups, -1).sum(1)
    counts = counts[counts > 0]
    if int(counts.min()) != int(counts.max()):
        raise Refused("its groups would differ in size")
    layer.groups = len(counts)


def _update_sizes(module: Any) -> None:
    """Make a layer's own record of its sizes fit its tensors."""
    weight: Any = getattr(module, "weight_v", None)
    weight = getattr(module, "weight", None) if weight is None else weight
    kind = type(module)
    if issubclass(kind, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif issubclass(kind, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = weight.shape
    elif issubclass(kind, TRANSPOSED):
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif issubclass(kind, CONVOLUTIONS):
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif issubclass(kind, nn.modules.batchnorm._NormBase):
        module.num_features = len(module.running_mean if weight is None else weight)
    elif issubclass(kind, nn.PReLU):
        module.num_parameters = len(weight)
    elif issubclass(kind, nn.Embedding | nn.EmbeddingBag):
        module.embedding_dim = weight.shape[1]
    elif issubclass(kind, nn.RNNBase):
        module.input_size = module.weight_ih_l0.shape[1]
        module.proj_size = module.weight_hr_l0.shape[0] if module.proj_size else 0
        module.hidden_size = module.weight_hr_l0.shape[1] if module.proj_size else module.weight_hh_l0.shape[1]
    elif issubclass(kind, nn.RNNCellBase):
        module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]
    elif issubclass(kind, AttentionOfFewerHeads):
        module.embed_dim = module.out_proj.weight.shape[0]


def _free_attention(model: nn.Module, plan: Plan) -> None:
    """Replace every ``nn.MultiheadAttention`` that would lose entries: it insists on its sizes."""
    for space, units in plan:
        paths = [_layer_path(name) for name in space.symmetry.names]
        paths += [path.rpartition(".")[0] for path in paths if path.rpartition(".")[2] == "out_proj"]
        for path in sorted(set(paths)):
            layer = model.get_submodule(path)
            if isinstance(layer, nn.MultiheadAttention):
                if layer.bias_k is not None or layer.add_zero_attn:
                    raise Refused("nn.MultiheadAttention with bias_k, bias_v or add_zero_attn")
                if not path:
                    raise Refused("the model itself is an nn.MultiheadAttention")
                layer_of_any_size = AttentionOfFewerHeads(layer)
                for module in model.modules():
                    for child in [child for child, value in module._modules.items() if value is layer]:
                        module._modules[child] = layer_of_any_size
                layer = layer_of_any_size
            if isinstance(layer, AttentionOfFewerHeads) and space.heads:
                layer.keep_heads([head for head in range(space.symmetry.units) if head not in units])


def _guesses(
    model: nn.Module, names: Sequence[str], lengths: dict[int, int], heads: Sequence[tuple[int, int]]
) -> list[Guess]:
    """Integers of hand-written modules around the cut tensors that equal a length, or count heads."""
    found: dict[tuple[str, str], list[Any]] = {}
    for path in _around(model, names):
        module = model.get_submodule(path)
        for name, value in vars(module).items():
            new = _shrunk(value, lengths, heads)
            if new and not name.startswith("_"):
                found.setdefault((path, name), new)
    return [(path, name, value) for (path, name), several in found.items() for value in several][:MOST_GUESSES]


def _around(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Hand-written modules that hold the tensors, two levels up, and nn.Unflatten beside them; nearest first."""
    paths: dict[str, None] = {}
    above = [_layer_path(name) for name in names]
    for _ in range(3):
        for path in above:
            paths[path] = None
            children = model.get_submodule(path).named_children()
            for child, module in children:
                if isinstance(module, nn.Unflatten):
                    paths[f"{path}.{child}" if path else child] = None
        above = [path.rpartition(".")[0] for path in above]
    library = ("torch.nn.", "symlearn._audit_attention")
    modules = {path: model.get_submodule(path) for path in paths}
    return [
        path
        for path, module in modules.items()
        if isinstance(module, nn.Unflatten) or not type(module).__module__.startswith(library)
    ]


def _shrunk(value: Any, lengths: dict[int, int], heads: Sequence[tuple[int, int]]) -> list[Any]:
    if isinstance(value, int) and not isinstance(value, bool):
        new = [lengths[value]] if value in lengths else []
        new += [value * (n - less) // n for n, less in heads if value >= n and value % n == 0]
        return list(dict.fromkeys(new))
    if isinstance(value, tuple) and value and all(type(each) is int for each in value):
        follows = tuple(lengths.get(each, each) for each in value)
        return [follows] if follows != value else []
    return []


def _where(index: Tensor, unit: int) -> Tensor:
    """Where a unit occurs among the rows of `_unit_rows`, in order."""
    return (index.reshape(-1) == unit).nonzero()[:, 0]


def _unit_rows(tensor: Tensor, index: Tensor) -> Tensor:
    """The tensor with a first axis that runs over the axes along which the index varies."""
    varied = [axis for axis in range(index.ndim) if index.shape[axis] > 1] or [0]
    return tensor.detach().movedim(varied, list(range(len(varied)))).flatten(0, len(varied) - 1)


def _from_rows(rows: Tensor, index: Tensor, shape: Sequence[int]) -> Tensor:
    varied = [axis for axis in range(index.ndim) if index.shape[axis] > 1] or [0]
    others = [axis for axis in range(len(shape)) if axis not in varied]
    return rows.reshape([shape[axis] for axis in [*varied, *others]]).movedim(list(range(len(varied))), varied)
