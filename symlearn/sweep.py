"""Parameter sweeps that run in parallel and survive being killed.

A thin layer over joblib: seeds that do not depend on scheduling, a cache on disk that is written call by call, and
errors that name the point. On a cluster, put ``joblib.parallel_config(backend="dask")`` around the same call.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import itertools
import json
import os
import pickle
import sys
import traceback
import uuid
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
from joblib.parallel import get_active_backend
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from symlearn._checks import check_bool, check_int, check_str, invalid, wrong_type

__all__ = ["SweepResult", "grid", "sweep"]


def grid(**axes: Sequence) -> list[dict[str, Any]]:
    """All combinations of the given values, in the order given, the last axis fastest.

    Parameters
    ----------
    **axes : sequence
        Values of each argument: a list, tuple, range or one-dimensional array. NumPy scalars become Python numbers.

    Returns
    -------
    list of dict
        One point per combination, for ``sweep``.

    Raises
    ------
    TypeError
        An axis is not a sequence (a bare string counts as one value, not as a sequence).
    ValueError
        No axis, an empty axis, or an array that is not one-dimensional.

    Examples
    --------
    >>> grid(width=[8, 16], lr=[0.1, 0.01])
    [{'width': 8, 'lr': 0.1}, {'width': 8, 'lr': 0.01}, {'width': 16, 'lr': 0.1}, {'width': 16, 'lr': 0.01}]
    """
    if not axes:
        raise invalid("axes", "at least one", "none")
    columns = [_axis(name, values) for name, values in axes.items()]
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*columns)]


def sweep(
    function: Callable[..., Any],
    points: Iterable[Mapping[str, Any]],
    *,
    repeats: int = 1,
    seed: int | None = None,
    n_jobs: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    version: str = "",
    progress: bool = False,
) -> SweepResult:
    """Call a function at every point, in parallel if asked, and keep each result on disk as it arrives.

    Calls ``function(**point)``, or ``function(**point, rng=generator)`` when ``seed`` is given. A call costs
    well under a millisecond more than with joblib alone, and with a cache one ``fsync`` (about 1 to 10 ms). So let the
    function batch its own runs or grid cells: a point is best a block of about a second.

    Parameters
    ----------
    function : callable
        Returns a number, an array (or tensor), or a dict of those with the same names and shapes at all points.
        With a cache or other processes it must be importable by name: at the top level of a module, script or notebook.
    points : sequence of mapping
        Arguments of each call, all with the same names. Values: float, int, str, bool, None and tuples of them
        (pass a name or a path and build the object inside ``function``). 1 and 1.0 are different points.
    repeats : int
        Independent calls per point; more than one needs a ``seed``.
    seed : int, optional
        The stream of a call depends on ``seed``, its point and its repeat, and on nothing else: not on ``n_jobs``,
        not on the order, not on the other points.
    n_jobs : int, optional
        Number of processes; -1 for all cores. None: what ``joblib.parallel_config`` says, 1 without it.
    cache_dir : path, optional
        Folder of finished calls, created if missing. A later sweep computes only what is not in it.
    version : str
        Part of the cache key. Change it when the code that ``function`` runs has changed.
    progress : bool
        Show a bar of finished calls; those found in the cache count at once.

    Returns
    -------
    SweepResult
        Points, values and how many calls were computed and found.

    Raises
    ------
    TypeError
        An argument, a value of a point, or a result of ``function`` has the wrong type.
    ValueError
        No points, points with different names, results of different names or shapes, ``repeats`` without a ``seed``,
        or a lambda or nested function with a cache or other processes.
    RuntimeError
        ``function`` raised (the message has the point and the text of the error, which is chained), or a worker died.
        What had finished is in the cache.

    Notes
    -----
    - *Cache.* One ``.npz`` per function (module and qualified name), ``version``, point, seed and repeat, replaced
      atomically, so a killed sweep resumes where it was; an unreadable file is recomputed. A function of a script or
      notebook has no module name of its own: there its source text joins the key, and editing it recomputes. Neither
      key sees what the function calls or which globals it reads. Several sweeps may share a folder. A kill in
      mid-write leaves a ``.tmp`` file there, which may be deleted.
    - *Threads.* Each worker uses one BLAS and one torch thread, unless ``n_jobs`` is 1. A sum that BLAS splits
      over threads can therefore differ in its last bit between one job and several.
    - *Batches.* joblib sends calls of less than 0.2 s in batches of up to a second or two; they arrive together.
    - *Clusters.* Dask runs the calls of a lost worker again elsewhere. It gives up on a call whose workers died more
      than ``distributed.scheduler.allowed-failures`` times (3): then ``sweep`` raises. Raise that number in Dask's
      configuration where workers are preempted. The cache is written by the calling process: no shared disk is needed.
      joblib does not use a cluster of a single core: the calls then run in the calling process.
    - *Ctrl-C* stops the workers and keeps what is finished.

    Examples
    --------
    >>> def estimate_pi(n_samples, rng):
    ...     return 4 * np.mean(rng.random(n_samples) ** 2 + rng.random(n_samples) ** 2 < 1)
    >>> result = sweep(estimate_pi, grid(n_samples=[100, 100_000]), repeats=4, seed=0)
    >>> result.values["value"].shape
    (2, 4)
    >>> bool(abs(result.values["value"][1].mean() - np.pi) < 0.02)
    True

    With a cache, the second sweep computes only the new point:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = sweep(np.linspace, grid(start=[0.0], stop=[1.0, 2.0], num=[3]), cache_dir=folder)
    ...     second = sweep(np.linspace, grid(start=[0.0], stop=[1.0, 2.0, 4.0], num=[3]), cache_dir=folder)
    >>> second.n_cached, second.n_computed
    (2, 1)
    >>> second.values["value"][:, 0]
    array([[0. , 0.5, 1. ],
           [0. , 1. , 2. ],
           [0. , 2. , 4. ]])
    """
    repeats = check_int("repeats", repeats, 1)
    if seed is not None:
        seed = check_int("seed", seed, 0)
    elif repeats > 1:
        raise invalid("seed", "given when repeats > 1", "None")
    plain = _check_points(points, seeded=seed is not None)
    several_jobs = _check_jobs(n_jobs) != 1
    check_bool("progress", progress)
    check_str("version", version)
    _check_function(function, needs_name=cache_dir is not None or (several_jobs and not _backend_uses_threads()))

    folder = None if cache_dir is None else _check_folder(cache_dir)
    identity = "" if folder is None else _identity(function)
    calls = [_make_call(identity, version, point, seed, repeat) for point in plain for repeat in range(repeats)]

    results = [None if folder is None else _load(folder, call) for call in calls]
    missing = [index for index, values in enumerate(results) if values is None]
    layouts: _Layouts = {}
    for call, values in zip(calls, results, strict=True):
        if values is not None:
            _check_alike(layouts, call, values)

    outcomes = _outcomes(function, calls, missing, n_jobs, several_jobs)
    with contextlib.closing(outcomes), _bar(progress, len(calls), len(missing)) as bar:
        for index, outcome in outcomes:
            results[index] = values = _opened(calls[index], outcome)
            _check_alike(layouts, calls[index], values)
            if folder is not None:
                _store(folder, calls[index], values)
            bar.update()
    return SweepResult(tuple(plain), _stack(results, len(plain), repeats), len(missing), len(calls) - len(missing))


@dataclass(frozen=True, eq=False)
class SweepResult:
    """What a sweep has found.

    Attributes
    ----------
    points : tuple of dict
        The points in the order given.
    values : dict of ndarray, each of shape (n_points, repeats, ...)
        One array per name that the function returned; a bare number or array is ``"value"``.
    n_computed : int
        Calls made by this sweep.
    n_cached : int
        Calls found in the cache.
    """

    points: tuple[dict[str, Any], ...]
    values: dict[str, np.ndarray]
    n_computed: int
    n_cached: int


class _Call(NamedTuple):
    point: dict[str, Any]
    repeat: int
    entropy: list[int] | None
    key: str


@dataclass(frozen=True)
class _Failure:
    error: BaseException
    text: str


_Layouts = dict[frozenset[tuple[str, tuple[int, ...]]], _Call]
_IMPORT = uuid.uuid4().hex


def _axis(name: str, values: Any) -> list[Any]:
    if hasattr(values, "tolist") and hasattr(values, "ndim"):
        if values.ndim != 1:
            raise invalid(name, "one-dimensional", f"shape {tuple(values.shape)}")
        values = values.tolist()
    elif isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise wrong_type(name, "a sequence of values", values)
    if not len(values):
        raise invalid(name, "a sequence of at least one value", "none")
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _check_points(points: Any, seeded: bool) -> list[dict[str, Any]]:
    if isinstance(points, (str, bytes, Mapping)) or not isinstance(points, Iterable):
        raise wrong_type("points", "a sequence of dicts", points)
    points = list(points)
    if not points:
        raise invalid("points", "at least one", "none")
    plain = []
    for i, point in enumerate(points):
        if not isinstance(point, Mapping):
            raise wrong_type(f"points[{i}]", "a dict", point)
        for name in point:
            if not isinstance(name, str):
                raise wrong_type(f"points[{i}]", "a dict whose names are strings", name)
        if set(point) != set(points[0]):
            raise invalid(f"points[{i}]", f"of the names {_words(points[0])}, as points[0]", _words(point))
        plain.append({name: _plain(f"points[{i}][{name!r}]", value) for name, value in point.items()})
    if seeded and "rng" in plain[0]:
        raise invalid("points", "without the name 'rng' when seed is given", "'rng'")
    return plain


def _words(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(repr, names))) or "none"


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) is tuple:
        return tuple(_plain(f"{name}[{i}]", part) for i, part in enumerate(value))
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise wrong_type(name, "a float, int, str, bool, None or a tuple of them", value)


def _check_jobs(n_jobs: Any) -> int:
    if n_jobs is not None and check_int("n_jobs", n_jobs, -sys.maxsize) == 0:
        raise invalid("n_jobs", "None or an integer other than 0", 0)
    return joblib.effective_n_jobs(n_jobs)


def _backend_uses_threads() -> bool:
    return getattr(get_active_backend()[0], "uses_threads", False)


def _check_function(function: Any, needs_name: bool) -> None:
    if not callable(function):
        raise wrong_type("function", "callable", function)
    if not needs_name:
        return
    name = getattr(function, "__qualname__", None)
    found: Any = sys.modules.get(getattr(function, "__module__", None) or "")
    for part in (name or "").split("."):
        found = getattr(found, part, None)
    if found is not function:
        condition = "importable by name (not a lambda, nested or partial) when cached or run by other processes"
        raise invalid("function", condition, name or f"a {type(function).__name__}")


def _check_folder(cache_dir: Any) -> Path:
    try:
        folder = Path(cache_dir)
    except TypeError:
        raise wrong_type("cache_dir", "a path", cache_dir) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise invalid("cache_dir", "a folder", f"{str(folder)!r}, which is or lies below a file") from None
    return folder


def _identity(function: Callable) -> str:
    """Module and qualified name; ``__main__`` names no code, so there the source text is added."""
    name = f"{function.__module__}.{function.__qualname__}"
    if function.__module__ != "__main__":
        return name
    try:
        return f"{name}\n{inspect.getsource(function)}"
    except (OSError, TypeError):
        raise invalid("function", "of a module, script or notebook when cached", f"{name} without source") from None


def _make_call(identity: str, version: str, point: dict[str, Any], seed: int | None, repeat: int) -> _Call:
    canonical = [[name, _canonical(point[name])] for name in sorted(point)]
    text = json.dumps(canonical, separators=(",", ":"))
    words = np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype="<u4")
    entropy = None if seed is None else [seed, repeat, *words.tolist()]
    return _Call(point, repeat, entropy, json.dumps([identity, version, canonical, _canonical(seed), repeat]))


def _canonical(value: Any) -> Any:
    if type(value) is float:
        return {"float": value.hex()}
    if type(value) is int:
        return {"int": hex(value)}
    if type(value) is tuple:
        return [_canonical(part) for part in value]
    return value


def _path(folder: Path, call: _Call) -> Path:
    return folder / f"{hashlib.sha256(call.key.encode()).hexdigest()}.npz"


def _load(folder: Path, call: _Call) -> dict[str, np.ndarray] | None:
    try:
        with np.load(_path(folder, call), allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            values = {name: file[f"value{i}"] for i, name in enumerate(header["names"])}
    except Exception:  # missing, cut short, damaged in any way, or not ours: computing it again is always right
        return None
    return values if header["key"] == call.key else None


def _store(folder: Path, call: _Call, values: dict[str, np.ndarray]) -> None:
    path = _path(folder, call)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    header = json.dumps({"key": call.key, "names": list(values)}).encode()
    arrays: dict[str, Any] = {f"value{i}": array for i, array in enumerate(values.values())}
    try:
        with open(temporary, "xb") as file:
            np.savez(file, header=np.frombuffer(header, dtype=np.uint8), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_alike(layouts: _Layouts, call: _Call, values: dict[str, np.ndarray]) -> None:
    layouts.setdefault(frozenset((name, array.shape) for name, array in values.items()), call)
    if len(layouts) > 1:
        one, other = (f"{dict(sorted(layout))} at {call.point}" for layout, call in layouts.items())
        raise invalid("the results of function", "of the same names and shapes at all points", f"{one} and {other}")


def _opened(call: _Call, outcome: Any) -> dict[str, np.ndarray]:
    if isinstance(outcome, _Failure):
        where = f"{call.point}, repeat {call.repeat}" if call.repeat else f"{call.point}"
        raise RuntimeError(f"function failed at {where}: {outcome.text}") from outcome.error
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _bar(progress: bool, n_calls: int, n_missing: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=n_calls, initial=n_calls - n_missing, unit="call", disable=not progress)


def _stack(results: Sequence[Any], n_points: int, repeats: int) -> dict[str, np.ndarray]:
    stacked = {name: np.stack([values[name] for values in results]) for name in results[0]}
    return {name: array.reshape(n_points, repeats, *array.shape[1:]) for name, array in stacked.items()}


def _outcomes(
    function: Callable, calls: Sequence[_Call], missing: Sequence[int], n_jobs: int | None, several_jobs: bool
) -> Generator[tuple[int, Any]]:
    """Index and outcome of each missing call, as they finish; closing this early stops the workers."""
    home = _process()
    tasks = [joblib.delayed(_run)(function, i, calls[i].point, calls[i].entropy, home) for i in missing]
    with _workers_of_one_thread() if several_jobs else contextlib.nullcontext():
        results = _stream(tasks, n_jobs, several_jobs)
        try:
            yield from results
        except Exception as error:  # those of the function come back as values
            text = f"the workers failed before all calls were finished: {type(error).__name__}: {error}"
            raise RuntimeError(text) from error


def _stream(tasks: Sequence[Any], n_jobs: int | None, several_jobs: bool) -> Generator[tuple[int, Any]]:
    if several_jobs and not get_active_backend()[0].supports_return_generator:  # ray, multiprocessing: in rounds
        with joblib.Parallel(n_jobs=n_jobs) as parallel:
            size = 4 * joblib.effective_n_jobs(n_jobs)
            for start in range(0, len(tasks), size):
                yield from parallel(tasks[start : start + size])
        return
    results = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")(tasks)
    try:
        for result in results:  # noqa: UP028 (yield from would close them outside of the finally)
            yield result
    finally:
        with warnings.catch_warnings():  # joblib warns of results that nobody will read
            warnings.simplefilter("ignore")
            results.close()


@contextlib.contextmanager
def _workers_of_one_thread() -> Iterator[None]:
    """One BLAS and torch thread in each worker, and in this process while workers may be threads of it."""
    backend, _ = get_active_backend()
    torch = sys.modules.get("torch")
    torch_threads = torch.get_num_threads() if torch else 1
    with contextlib.ExitStack() as restore:
        if torch:
            restore.callback(torch.set_num_threads, torch_threads)
            torch.set_num_threads(1)
        restore.enter_context(threadpool_limits(limits=1))
        if backend.supports_inner_max_num_threads:
            restore.callback(setattr, backend, "inner_max_num_threads", backend.inner_max_num_threads)
            restore.enter_context(joblib.parallel_config(backend=backend, inner_max_num_threads=1))
        if type(backend).__module__ == "joblib._dask":
            restore.enter_context(_lost_calls_reported(backend))
        yield


@contextlib.contextmanager
def _lost_calls_reported(backend: Any) -> Iterator[None]:
    """Raise where joblib's Dask backend (1.6) waits for ever: it forgets the call on which Dask has given up."""
    submit = backend.submit

    def submit_and_report(task: Any, callback: Callable) -> Any:
        future = submit(task, callback)
        future.add_done_callback(lambda done: callback(done.exception()) if done.exception() else None)
        return future

    backend.submit = submit_and_report
    try:
        yield
    finally:
        del backend.submit


def _process() -> str:
    return f"{_IMPORT}-{os.getpid()}"


def _run(function: Callable, index: int, point: dict[str, Any], entropy: Any, home: str) -> tuple[int, Any]:
    """One call, in a worker: its arrays, a failure, or the error of a result that is none."""
    away = _process() != home
    if away:
        _use_one_thread()
    rng = {} if entropy is None else {"rng": np.random.default_rng(np.random.SeedSequence(entropy))}
    try:
        result = function(**point, **rng)
    except (Exception, SystemExit) as error:
        return index, _Failure(_portable(error) if away else error, f"{type(error).__name__}: {error}")
    try:
        return index, _arrays(point, result)
    except (TypeError, ValueError) as error:
        return index, error


def _use_one_thread() -> None:
    _limit_pools()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@functools.cache
def _limit_pools() -> None:
    threadpool_limits(limits=1)


def _portable(error: BaseException) -> BaseException:
    """The error with its traceback as a note, or the text of both if it does not survive pickling."""
    text = "".join(traceback.format_exception(error))
    error.add_note(f"\nIn the worker:\n{text}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(text)
    return error


def _arrays(point: dict[str, Any], result: Any) -> dict[str, np.ndarray]:
    name = f"the result of function at {point}"
    values = dict(result) if isinstance(result, Mapping) else {"value": result}
    if not values:
        raise invalid(name, "a number, an array or a dict of at least one of those", "an empty dict")
    for key in values:
        if not isinstance(key, str):
            raise wrong_type(name, "a dict whose names are strings", key)
    return {key: _array(name, value) for key, value in values.items()}


def _array(name: str, value: Any) -> np.ndarray:
    """A copy, so that a function may reuse its buffers."""
    try:
        array = np.array(value.numpy(force=True) if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError):
        array = np.array(None)
    if array.dtype.kind not in "biufc":
        raise wrong_type(name, "a number, an array of numbers or a dict of those", value)
    return array
