"""An audit of ResNet-18 takes less than 20 s and 1.5 GB, one of a 22-million-parameter transformer less than 30 s.

Run ``python benchmarks/audit.py [--quick] [--threads N]``. First agreement: the exchangeable units of ResNet-18, VGG-16
and the transformer's feedforward layers must be those of ``torch_pruning.DependencyGraph`` (which knows exchanges only:
no scalings, signs, matrices, translations, heads under rotary embeddings, and nothing verified); skipped where it is
not installed. Then the time of a whole audit beside that of the graph alone, of `rebalance` and of `physical_prune`,
medians of alternating runs in one process; peak memory is that of a child process, above what the model itself takes.
Exits with an error when the exchangeable units disagree or a limit is missed.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys

import torch
from common import extra_mib, in_mib, printed_by_child, seconds
from torch import nn

from symlearn.audit import audit, physical_prune, rebalance
from symlearn.models import resnet18, vgg16

try:
    import torch_pruning
except ImportError:
    torch_pruning = None

LIMITS = {"resnet18": (20.0, 1500.0), "transformer": (30.0, 1500.0), "vgg16": (30.0, 1500.0)}  # seconds, MiB


class Transformer(nn.Module):
    """A sentence encoder: 6 post-norm layers of width 384 with 12 heads, 30,522 words, 512 places."""

    def __init__(self, words=30_522, places=512, width=384, heads=12, layers=6, inner=1536):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(places, width)
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(width, heads, inner, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.layers(self.norm(self.words(tokens) + self.places(places))).mean(1)


def build(name, quick):
    """A model away from its initialisation, and two inputs."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    if name == "transformer":
        model = Transformer(words=3000, width=96, heads=4, layers=2, inner=384) if quick else Transformer()
        inputs = torch.randint(3000, (2, 16), generator=generator)
    else:
        network = {"resnet18": resnet18, "vgg16": vgg16}[name]
        model = network(width_divisor=8 if quick else 1, generator=generator)
        inputs = torch.randn(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.eval(), inputs


def exchanged_here(report):
    """Modules whose outputs are exchanged, one set per space, of those without heads."""
    spaces = set()
    for finding in report.symmetries:
        if finding.kind == "permutation" and not any("in_proj" in name for name in finding.incoming):
            writers = [name.removesuffix(".weight") for name in finding.incoming if name.endswith("weight")]
            spaces.add(frozenset(writers))
    return spaces


def exchanged_there(model, inputs):
    """The same from the peer, without the space of the outputs."""
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=inputs)
    names = {module: name for name, module in model.named_modules()}
    spaces = set()
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        members = [
            (names[item.dep.target.module], item.dep.handler)
            for item in group
            if item.dep.target.module in names and isinstance(item.dep.target.module, (nn.Conv2d, nn.Linear))
        ]
        writers = frozenset(name for name, handler in members if "out" in handler.__name__)
        if any("in_channels" in handler.__name__ for _, handler in members):
            spaces.add(writers)
    return spaces


def weights_only(spaces, model):
    """Spaces as sets of their convolutions and linear layers."""
    layers = {name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    return {frozenset(name for name in space if name in layers) for space in spaces} - {frozenset()}


def graph_alone(model, inputs):
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=inputs)
    return list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="narrow networks")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--memory", choices=LIMITS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        model, inputs = build(options.memory, options.quick)
        print(extra_mib(lambda: audit(model, inputs)))
        return
    peer = "not installed" if torch_pruning is None else torch_pruning.__version__
    print(f"torch {torch.__version__}, torch-pruning {peer}, {options.threads} threads\n")
    print(f"{'model':12s} {'parameters':>12s} {'flat':>9s} {'audit':>8s} {'memory':>10s} {'peer graph':>10s} ", end="")
    print(f"{'rebalance':>10s} {'prune':>8s}  exchangeable units")
    missed = []
    for name, (most_seconds, most_mib) in LIMITS.items():
        model, inputs = build(name, options.quick)
        report = audit(model, inputs)
        agreement = "peer not installed"
        if torch_pruning is not None and name != "transformer":
            here, there = (
                weights_only(exchanged_here(report), model),
                weights_only(exchanged_there(model, inputs), model),
            )
            agreement = f"{len(here)} spaces, the same" if here == there else f"differ: {here ^ there}"
            missed += [f"{name}: {agreement}"] if here != there else []
        elif name == "transformer":
            agreement = "the peer sees no heads"
        tasks = {"audit": functools.partial(audit, model, inputs)}
        if torch_pruning is not None:
            tasks["peer"] = functools.partial(graph_alone, model, inputs)
        tasks["rebalance"] = functools.partial(rebalance, model, inputs, report=report)
        tasks["prune"] = functools.partial(physical_prune, model, inputs, report=report)
        times = {task: [] for task in tasks}
        for _ in range(options.repeats):
            for task, function in tasks.items():
                times[task].append(seconds(function))
        middle = {task: statistics.median(values) for task, values in times.items()}
        memory = printed_by_child(__file__, "--memory", name, *(["--quick"] if options.quick else []))
        print(
            f"{name:12s} {report.n_parameters:12,} {report.flat_dimension:9,} {middle['audit']:6.1f} s "
            f"{in_mib(memory):>10s} {middle.get('peer', float('nan')):7.2f} s {middle['rebalance']:8.1f} s "
            f"{middle['prune']:6.1f} s  {agreement}"
        )
        if middle["audit"] > most_seconds or (memory or 0) > most_mib:
            missed.append(f"{name}: more than {most_seconds} s or {most_mib} MiB")
    if missed:
        sys.exit("\n".join(missed))


if __name__ == "__main__":
    main()
