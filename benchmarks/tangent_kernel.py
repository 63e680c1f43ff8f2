"""Trace kernels of perceptrons and small convolutional nets against torch.func, nngeometry and neural-tangents.

Run ``python benchmarks/tangent_kernel.py [--full] [--jax-path DIR]``. All methods compute the same kernel of the same
network on the same inputs, in turn, each in a process of its own on one core. Times are medians of the processor time
of a call, which other work on the machine does not count towards; a ratio is the median over rounds of the ratio within
a round. Memory is the peak of the first call above what was resident before it. neural-tangents is compiled, with its
structured derivatives; compilation is not counted. The versions of jax that it supports need an older numpy than torch
does, so they can live in a directory of their own (``--jax-path``). A peer that is not installed is left out. The exit
status is 1 if kernels disagree.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import extra_mib

TOLERANCE = 1e-4  # float32, relative to the largest entry
LIMIT = 6 * 2**30  # bytes of the Jacobians of the recipe, which holds two
N_CLASSES = 10
NETWORKS: dict[str, tuple[int, ...]] = {"MLP 784-512-512-10": (784,), "CNN 8-16, 28 x 28": (1, 28, 28)}
OURS, RECIPE, NNGEOMETRY, TANGENTS = "symlearn", "torch.func recipe", "nngeometry", "neural-tangents"
METHODS = (OURS, RECIPE, NNGEOMETRY, TANGENTS)


def network(name: str) -> Any:
    """Networks that every peer supports; the kernel of the second is mostly convolutions."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if name.startswith("MLP"):
        return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, N_CLASSES))
    first = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)
    second = nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(784, N_CLASSES))


def inputs(name: str, n_samples: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n_samples, *NETWORKS[name]), dtype=np.float32)


def with_symlearn(name: str, n_samples: int) -> Callable[[], np.ndarray]:
    import torch

    from symlearn.tangent_kernel import empirical_ntk

    model, x = network(name), torch.from_numpy(inputs(name, n_samples))
    return lambda: empirical_ntk(model, x).numpy()


def with_recipe(name: str, n_samples: int) -> Callable[[], np.ndarray]:
    """The Jacobian contraction of the torch.func tutorial: both Jacobians, one product per parameter."""
    import torch
    from torch.func import functional_call, jacrev, vmap

    model, x = network(name), torch.from_numpy(inputs(name, n_samples))
    params = {key: value.detach() for key, value in model.named_parameters()}

    def outputs(params: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        return functional_call(model, params, (sample.unsqueeze(0),)).squeeze(0)

    def run() -> np.ndarray:
        first, second = (vmap(jacrev(outputs), (None, 0))(params, x) for _ in range(2))
        pairs = ((first[key].flatten(2), second[key].flatten(2)) for key in params)
        return (sum(torch.einsum("Naf,Maf->NM", *pair) for pair in pairs) / N_CLASSES).numpy()

    return run


def with_nngeometry(name: str, n_samples: int) -> Callable[[], np.ndarray]:
    """Its kernel of all pairs of outputs takes ten times longer than one kernel for each output."""
    import torch
    from nngeometry.gram import GramMatrix
    from torch.utils.data import DataLoader, TensorDataset

    model, x = network(name), torch.from_numpy(inputs(name, n_samples))
    loader = DataLoader(TensorDataset(x), batch_size=256)

    def run() -> np.ndarray:
        total = torch.zeros(n_samples, n_samples)
        for index in range(N_CLASSES):
            gram = GramMatrix(model, loader, function=lambda x, i=index: model(x)[:, i : i + 1])
            total += gram.to_torch().view(n_samples, n_samples)
        return (total / N_CLASSES).numpy()

    return run


def with_neural_tangents(name: str, n_samples: int, weights: str) -> Callable[[], np.ndarray]:
    """Structured derivatives, vectorised over samples, compiled."""
    sys.modules["neural_tangents.experimental"] = types.ModuleType("experimental")  # the part that needs TensorFlow
    import jax
    import neural_tangents as nt
    from jax import lax, nn

    with np.load(weights) as stored:
        arrays = [stored[key] for key in sorted(stored)]
    # Shapes for which it knows structure: matrices (inputs, outputs), biases that need no reshaping.
    is_convolution = [each.ndim == 4 for each in arrays[::2] for _ in range(2)]
    params = [
        jax.device_put(each.T if each.ndim == 2 else each[:, None, None] if convolution and each.ndim == 1 else each)
        for each, convolution in zip(arrays, is_convolution, strict=True)
    ]

    def pooled(x: Any) -> Any:
        return lax.reduce_window(x, 0.0, lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID") / 4

    def perceptron(params: list[Any], x: Any) -> Any:
        for w, b in zip(params[0:-2:2], params[1:-2:2], strict=True):
            x = nn.relu(x @ w + b)
        return x @ params[-2] + params[-1]

    def convolutional(params: list[Any], x: Any) -> Any:
        for w, b in zip(params[0:-2:2], params[1:-2:2], strict=True):
            x = pooled(nn.relu(lax.conv(x, w, (1, 1), "SAME") + b))
        return x.reshape(len(x), -1) @ params[-2] + params[-1]

    kernel = nt.empirical_ntk_fn(
        perceptron if name.startswith("MLP") else convolutional,
        trace_axes=(-1,),
        vmap_axes=0,
        implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES,
    )
    compiled = jax.jit(lambda x, params: kernel(x, None, params))
    x = jax.device_put(inputs(name, n_samples))
    return lambda: np.asarray(compiled(x, params))


def make(method: str, name: str, n_samples: int, weights: str) -> Callable[[], np.ndarray]:
    if method == TANGENTS:
        return with_neural_tangents(name, n_samples, weights)
    import torch

    torch.set_num_threads(1)
    return {OURS: with_symlearn, RECIPE: with_recipe, NNGEOMETRY: with_nngeometry}[method](name, n_samples)


class Worker:
    """A method in a process of its own, which computes when asked."""

    def __init__(self, method: str, name: str, n_samples: int, folder: str, jax_path: str | None) -> None:
        self.result = Path(folder) / f"{method}.npy"
        command = [sys.executable, "-W", "ignore", __file__, "--worker", method, name, str(n_samples), folder]
        environment = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", JAX_PLATFORMS="cpu")
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        if method == TANGENTS and jax_path:
            environment["PYTHONPATH"] = jax_path
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def memory(self) -> float:
        """Peak of the first call in MiB; to be asked once, before anything else."""
        return float(self._read())

    def seconds(self) -> float:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self._read())

    def _read(self) -> str:
        assert self.process.stdout
        assert self.process.stderr
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.process.stderr.read())
        return line

    def close(self) -> None:
        self.process.communicate()


def work(method: str, name: str, n_samples: int, folder: str) -> None:
    """Prints the peak memory of the first call beyond what a tiny call leaves, then the seconds of each call."""
    warnings.simplefilter("ignore")
    weights = str(Path(folder) / "weights.npz")
    make(method, name, 4, weights)()
    run = make(method, name, n_samples, weights)
    print(extra_mib(lambda: np.save(Path(folder) / f"{method}.npy", run())), flush=True)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for _ in sys.stdin:
        start = time.process_time()
        run()
        print(time.process_time() - start, flush=True)


def compare(name: str, n_samples: int, methods: list[str], n_rounds: int, jax_path: str | None) -> bool:
    """Print one table; returns whether all kernels agree."""
    model = network(name)
    n_parameters = sum(each.numel() for each in model.parameters())
    chosen = list(methods)
    jacobians = 8 * n_samples * N_CLASSES * n_parameters
    left_out = ""
    if RECIPE in chosen and jacobians > LIMIT:
        chosen.remove(RECIPE)
        left_out = f"; {RECIPE} left out, its Jacobians would take {jacobians / 2**30:.0f} GiB"
    with tempfile.TemporaryDirectory() as folder:
        arrays = {f"{i:03d}": each.detach().numpy() for i, each in enumerate(model.parameters())}
        np.savez(Path(folder) / "weights.npz", **arrays)
        workers = {method: Worker(method, name, n_samples, folder, jax_path) for method in chosen}
        memory = {method: worker.memory() for method, worker in workers.items()}
        kernels = {method: np.load(worker.result) for method, worker in workers.items()}
        times = {method: [] for method in chosen}
        for _ in range(n_rounds):
            for method, worker in workers.items():
                times[method].append(worker.seconds())
        for worker in workers.values():
            worker.close()
    reference, ours = kernels[OURS], np.array(times[OURS])
    print(f"\n{name}, {n_parameters} parameters, {n_samples} inputs{left_out}")
    print(f"{'':20s}{'ms':>10s}{'/ first':>10s}{'MiB':>10s}{'difference':>14s}")
    agree = True
    for method in chosen:
        difference = float(np.abs(kernels[method] - reference).max() / np.abs(reference).max())
        agree &= difference <= TOLERANCE
        ratio = np.median(np.array(times[method]) / ours)
        milliseconds = 1e3 * np.median(times[method])
        print(f"{method:20s}{milliseconds:10.1f}{ratio:10.2f}{memory[method]:10.0f}{difference:14.1e}", flush=True)
    return agree


def installed(jax_path: str | None) -> list[str]:
    import torch

    print(f"torch {torch.__version__}, one thread")
    found = [OURS, RECIPE]
    if importlib.util.find_spec("nngeometry"):
        print(f"nngeometry {importlib.metadata.version('nngeometry')}")
        found.append(NNGEOMETRY)
    else:
        print("nngeometry: not installed")
    paths = [jax_path] if jax_path else sys.path
    versions = {
        each.metadata["Name"]: each.version
        for each in importlib.metadata.distributions(path=paths)
        if each.metadata["Name"] in ("jax", TANGENTS)
    }
    if len(versions) == 2:
        print(f"neural-tangents {versions[TANGENTS]} with jax {versions['jax']}")
        found.append(TANGENTS)
    else:
        print("neural-tangents: not installed")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="up to 2048 inputs, more rounds")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of inputs")
    parser.add_argument("--jax-path", help="directory with jax, neural-tangents and what they need")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        method, name, n_samples, folder = arguments.worker
        work(method, name, int(n_samples), folder)
        return 0
    methods = installed(arguments.jax_path)
    sizes = arguments.sizes or ((32, 128, 512, 2048) if arguments.full else (32, 256))
    agree = True
    for name in NETWORKS:
        for n_samples in sizes:
            n_rounds = 3 if n_samples > 256 else 9 if arguments.full else 5
            agree &= compare(name, n_samples, methods, n_rounds, arguments.jax_path)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
