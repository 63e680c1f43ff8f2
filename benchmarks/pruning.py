"""SynFlow is at least three times faster than a straightforward implementation of the published algorithm.

Run ``python benchmarks/pruning.py [--quick]``. The peer follows the paper line by line: absolute parameters, one
forward pass of ones, one backward pass, scores, one global threshold by ``torch.kthvalue``, masks. Same initial
weights, same counts, same threads, alternating runs in one process: compare the ratios, not the seconds. Peak memory is
that of a child process, above what the model itself takes. Exits with an error when masks or counts disagree, or (in
the full run) when the ratio is below three.
"""

import argparse
import statistics
import sys
import time

import torch
from common import extra_mib, printed_by_child
from torch import nn

from symlearn.models import mlp, resnet18, vgg16
from symlearn.pruning import prune

IMAGE = (3, 32, 32)
REQUIRED_RATIO = 3.0


def straightforward(model, compression, iterations, input_shape):
    """The published algorithm in the precision of the model; counts as in symlearn. Returns a mask per layer."""
    model.eval()
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    masks = [torch.ones_like(layer.weight) for layer in layers]
    n_total = sum(mask.numel() for mask in masks)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    ones = torch.ones(1, *input_shape, dtype=masks[0].dtype)
    for k in range(1, iterations + 1):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.abs_()
            for layer, mask in zip(layers, masks, strict=True):
                layer.weight.mul_(mask)
        model.zero_grad()
        model(ones).sum().backward()
        scores = [(layer.weight.grad * layer.weight).detach() for layer in layers]
        model.load_state_dict(initial)
        n_removed = n_total - max(1, round(n_total * compression ** (-k / iterations)))
        threshold = torch.kthvalue(torch.cat([values.flatten() for values in scores]), n_removed).values
        for mask, values in zip(masks, scores, strict=True):
            mask.copy_(values > threshold)
    return [mask.bool() for mask in masks]


def ours(model, compression, iterations, input_shape):
    result = prune(model, compression=compression, iterations=iterations, input_shape=input_shape, inplace=False)
    return list(result.masks.values())


IMPLEMENTATIONS = {"straightforward": straightforward, "symlearn": ours}


def build(name, divisor, dtype=torch.float32):
    network = {"vgg16": vgg16, "resnet18": resnet18}[name]
    return network(width_divisor=divisor, generator=torch.Generator().manual_seed(0)).to(dtype)


def n_different(first, second):
    return sum(int((a != b).sum()) for a, b in zip(first, second, strict=True))


def agree_in_float64():
    """Masks of both, in double precision, where no rounding hides an error."""
    perceptron = mlp([64, 100, 100, 10], generator=torch.Generator().manual_seed(0)).double()
    nets = {
        "perceptron": (perceptron, (64,)),
        "VGG-16 / 8": (build("vgg16", 8, torch.float64), IMAGE),
        "VGG-16 / 4": (build("vgg16", 4, torch.float64), IMAGE),
        "ResNet-18 / 4": (build("resnet18", 4, torch.float64), IMAGE),
    }
    good = True
    for name, (model, shape) in nets.items():
        different = n_different(*(run(model, 30.0, 10, shape) for run in IMPLEMENTATIONS.values()))
        print(f"agreement in float64, {name}, 10 rounds to compression 30: {different} mask entries differ")
        good &= different == 0
    return good


def timed(call):
    wall, cpu = time.perf_counter(), time.process_time()
    masks = call()
    return time.perf_counter() - wall, time.process_time() - cpu, masks


def compare(name, divisor, compression, iterations, threads, n_runs):
    """One table row per implementation: medians over alternating runs. Returns the ratio and whether counts agree."""
    torch.set_num_threads(threads)
    times = {key: [] for key in IMPLEMENTATIONS}
    masks = {}
    for run in IMPLEMENTATIONS.values():  # warm-up
        run(build(name, divisor), compression, 2, IMAGE)
    for _ in range(n_runs):
        for key, run in IMPLEMENTATIONS.items():
            model = build(name, divisor)
            *seconds, masks[key] = timed(lambda run=run, model=model: run(model, compression, iterations, IMAGE))
            times[key].append(seconds)
    medians = {key: [statistics.median(column) for column in zip(*rows, strict=True)] for key, rows in times.items()}
    kept = {key: sum(int(mask.sum()) for mask in parts) for key, parts in masks.items()}
    expected = round(sum(mask.numel() for mask in masks["symlearn"]) / compression)
    shared = sum(int((a & b).sum()) for a, b in zip(*masks.values(), strict=True)) / expected
    # one thread: processor time, which other programs on the machine disturb less
    column = 1 if threads == 1 else 0
    ratio = medians["straightforward"][column] / medians["symlearn"][column]
    print(
        f"\n{name} / {divisor}, compression {compression:g}, {iterations} rounds, {threads} thread(s), {n_runs} run(s)"
    )
    print(f"{'':17}{'wall s':>8}{'cpu s':>8}{'kept':>9}")
    for key, (wall, cpu) in medians.items():
        print(f"{key:17}{wall:8.2f}{cpu:8.2f}{kept[key]:9d}")
    print(f"ratio of {'cpu' if column else 'wall'} times: {ratio:.2f}; {shared:.1%} of the kept weights are the same")
    # the peer drops all weights at its threshold: equal scores may cost it a few
    return ratio, kept["symlearn"] == expected and abs(kept["straightforward"] - expected) <= 5 and shared > 0.8


def peak_memory(key, name, divisor):
    """Peak of a child process above its state with the model, in MiB; None where the kernel does not tell."""
    return printed_by_child(__file__, "--child", key, name, divisor)


def child(key, name, divisor):
    """The first five of a hundred rounds: later ones need less."""
    torch.set_num_threads(1)
    run = IMPLEMENTATIONS[key]
    run(build("vgg16", 32), 10.0, 1, IMAGE)  # loads what is loaded on first use
    model = build(name, int(divisor))
    print(extra_mib(lambda: run(model, 100.0**0.05, 5, IMAGE)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller networks and fewer rounds, no required ratio")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return 0
    threads = torch.get_num_threads()
    good = agree_in_float64()
    if options.quick:
        comparisons = [("vgg16", 2, 30.0, 20, 1, 1)]
    else:
        comparisons = [("vgg16", 1, 100.0, 100, 1, 3), ("resnet18", 1, 100.0, 100, 1, 1)]
        if threads > 1:
            comparisons.append(("vgg16", 1, 100.0, 100, threads, 1))
    for comparison in comparisons:
        ratio, same = compare(*comparison)
        good &= same
        if comparison[0] == "vgg16" and not options.quick and ratio < REQUIRED_RATIO:
            print(f"error: the ratio {ratio:.2f} is below {REQUIRED_RATIO}")
            good = False
    for key in IMPLEMENTATIONS:
        megabytes = peak_memory(key, "vgg16", 2 if options.quick else 1)
        if megabytes is not None:
            print(f"peak memory above the model, VGG-16, {key}: {megabytes:.0f} MiB")
    if not good:
        print("error: the implementations disagree, or ours is too slow")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
