import contextlib
import enum
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib._parallel_backends import ThreadingBackend

from symlearn.sweep import SweepResult, grid, sweep

# loky's manager thread can lose a race after it has killed its workers, and then ends with a KeyError
pytestmark = pytest.mark.filterwarnings("ignore:Exception in thread ExecutorManagerThread")
SRC = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def product(a, b):
    return a * b


def draws(lr, rng):
    return rng.standard_normal(4) + lr


def mixed(n, rng):
    return {
        "half": rng.standard_normal((2, n)).astype(np.float16),
        "count": np.int16(rng.integers(1000)),
        "flag": bool(rng.integers(2)),
        "wave": np.exp(1j * rng.standard_normal(3)),
        "column": np.asfortranarray(rng.standard_normal((n, 3)))[:, 1],
        "file": -0.0,
    }


def recorded(x, folder):
    with open(os.path.join(folder, f"{x}"), "a") as file:
        file.write("called\n")
    return float(x)


def moody(x):
    if x == 3:
        raise ZeroDivisionError("the text of the function")
    return x


def slow(x, rng):
    time.sleep(float(os.environ.get("SECONDS_PER_CALL", "0")))
    return {"x": x, "draws": rng.standard_normal(3).astype(np.float32)}


def poison(x):
    if x == 3:
        os._exit(1)
    return x


def exiting(x):
    sys.exit("no reason")


class Awkward(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def awkward(x):
    raise Awkward("salt", "pepper")


def torch_threads(x):
    import torch

    return torch.get_num_threads()


def blas_threads(x):
    from threadpoolctl import threadpool_info

    np.dot(np.ones((2, 2)), np.ones((2, 2)))
    return max(pool["num_threads"] for pool in threadpool_info())


def growing(n):
    return np.zeros(n)


def renamed(n):
    return {"a" if n else "b": n}


def wrong(kind):
    return {"none": None, "text": "hello", "object": object(), "ragged": [[1], [1, 2]], "nested": {"a": {"b": 1}}}[kind]


def empty_dict(x):
    return {}


def numbered_dict(x):
    return {1: 2.0}


def identical(first, second):
    assert first.points == second.points
    assert first.values.keys() == second.values.keys()
    for name, values in first.values.items():
        assert values.dtype == second.values[name].dtype
        assert values.shape == second.values[name].shape
        assert values.tobytes() == second.values[name].tobytes()


def cells(folder):
    return sorted(folder.glob("*.npz")) if folder.exists() else []


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.01)


# Points


def test_last_axis_of_a_grid_is_the_fastest():
    assert grid(a=[1, 2], b=("x", "z")) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "z"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "z"},
    ]
    assert [list(point) for point in grid(b=(1,), a=range(2))] == [["b", "a"]] * 2


def test_arrays_become_python_numbers_in_a_grid():
    (point,) = grid(a=np.arange(1), b=np.float32([0.5]), c=[np.int16(3)], d=np.array([True]))
    assert {name: type(value) for name, value in point.items()} == {"a": int, "b": float, "c": int, "d": bool}


def test_values_are_indexed_by_point_and_repeat():
    result = sweep(product, grid(a=[1, 2], b=[10, 20, 30]))
    assert isinstance(result, SweepResult)
    assert result.points[4] == {"a": 2, "b": 20}
    assert result.values["value"].shape == (6, 1)
    assert result.values["value"][:, 0].tolist() == [10, 20, 30, 20, 40, 60]
    assert (result.n_computed, result.n_cached) == (6, 0)


def test_dict_results_keep_their_names_shapes_and_types():
    result = sweep(mixed, grid(n=[5, 5]), repeats=3, seed=1)
    assert {name: (values.shape, str(values.dtype)) for name, values in result.values.items()} == {
        "half": ((2, 3, 2, 5), "float16"),
        "count": ((2, 3), "int16"),
        "flag": ((2, 3), "bool"),
        "wave": ((2, 3, 3), "complex128"),
        "column": ((2, 3, 5), "float64"),
        "file": ((2, 3), "float64"),
    }
    assert np.signbit(result.values["file"]).all()


def test_tensors_are_results_too():
    torch = pytest.importorskip("torch")
    result = sweep(lambda x: torch.tensor([x, 1.0], requires_grad=True), grid(x=[2.0]))
    assert result.values["value"].dtype == np.float32
    assert result.values["value"].tolist() == [[[2.0, 1.0]]]


def test_a_function_may_reuse_its_buffer():
    buffer = np.zeros(2)

    def fill(x):
        buffer[:] = x
        return buffer

    assert sweep(fill, grid(x=[1.0, 2.0])).values["value"][:, 0].tolist() == [[1, 1], [2, 2]]


def test_numpy_scalars_reach_the_function_as_python_numbers():
    result = sweep(lambda x: type(x) is float, [{"x": np.float32(0.5)}])
    assert result.values["value"].all()
    assert result.points == ({"x": 0.5},)


# Seeds


def test_streams_are_those_of_all_earlier_versions():
    # pinned: a change would silently make every cache and every published seed worthless
    result = sweep(draws, [{"lr": 0.0}], repeats=2, seed=7)
    np.testing.assert_allclose(result.values["value"][0, :, 0], [1.1808787467766035, 2.2436096272759847], rtol=1e-12)


def test_a_stream_depends_on_seed_point_and_repeat_alone():
    whole = sweep(draws, grid(lr=[0.1, 0.2, 0.3]), repeats=3, seed=0)
    alone = sweep(draws, [{"lr": 0.2}], repeats=2, seed=0)
    backwards = sweep(draws, grid(lr=[0.3, 0.2]), repeats=3, seed=0)
    assert np.array_equal(whole.values["value"][1, :2], alone.values["value"][0])
    assert np.array_equal(whole.values["value"][1:], backwards.values["value"][::-1])


def test_order_of_names_does_not_change_the_stream():
    def draw(a, b, rng):
        return rng.random()

    first = sweep(draw, [{"a": 1, "b": 2}], seed=0)
    second = sweep(draw, [{"b": 2, "a": 1}], seed=0)
    swapped = sweep(draw, [{"a": 2, "b": 1}], seed=0)
    assert first.values["value"] == second.values["value"] != swapped.values["value"]


def test_points_that_differ_only_in_type_have_streams_of_their_own():
    values = [1, 1.0, True, "1", None, (1,), (1, 1), ((1,), 1), ("1", 1), 0, 0.0, -0.0, False, "", "None", 2**80]
    result = sweep(lambda x, rng: rng.integers(2**62), [{"x": value} for value in values], repeats=2, seed=0)
    assert len(np.unique(result.values["value"])) == 2 * len(values)


def test_seeds_have_streams_of_their_own():
    seeds = [0, 1, 2**31, 2**32, 2**64 + 1]
    assert len({sweep(draws, [{"lr": 0.0}], seed=seed).values["value"].tobytes() for seed in seeds}) == 5


def test_repeats_and_points_are_independent():
    result = sweep(lambda x, rng: rng.standard_normal(50), grid(x=range(40)), repeats=5, seed=3)
    rows = result.values["value"].reshape(200, 50)
    # 200 x 50 standard normals: the mean has standard error 0.01, the variance 0.014; correlations of 50 pairs have
    # standard deviation 1/7, and the largest of 19900 such stays below 5.5 of them
    assert abs(rows.mean()) < 0.04
    assert abs(rows.var() - 1) < 0.06
    correlations = np.corrcoef(rows)[np.triu_indices(200, 1)]
    assert np.abs(correlations).max() < 5.5 / 7
    assert abs(correlations.std() * 7 - 1) < 0.05


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)


@given(value=plain)
@settings(max_examples=50, deadline=None)
def test_any_plain_point_gives_the_same_stream_twice(value):
    first, second = (sweep(lambda x, rng: rng.random(), [{"x": value}], seed=0) for _ in range(2))
    assert first.values["value"] == second.values["value"]


# Parallel


class InRounds(ThreadingBackend):
    supports_return_generator = False  # as Ray's backend and multiprocessing


def test_number_and_kind_of_workers_do_not_change_the_result():
    points = grid(n=[2]) + grid(n=[2])
    serial = sweep(mixed, points, repeats=6, seed=0)
    identical(serial, sweep(mixed, points, repeats=6, seed=0, n_jobs=2))
    for backend in ("threading", InRounds()):
        with joblib.parallel_config(backend=backend, n_jobs=2):
            identical(serial, sweep(mixed, points, repeats=6, seed=0))


def test_the_ambient_number_of_jobs_is_used():
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert os.getpid() not in sweep(pid, grid(x=range(4))).values["value"]
        assert (sweep(pid, grid(x=range(4)), n_jobs=1).values["value"] == os.getpid()).all()
    assert (sweep(pid, grid(x=range(4))).values["value"] == os.getpid()).all()


def pid(x):
    return os.getpid()


def test_lambdas_are_welcome_where_no_other_process_needs_them():
    assert sweep(lambda x: x + 1, grid(x=[1])).values["value"] == 2
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert sweep(lambda x: x + 1, grid(x=[1, 2])).values["value"].ravel().tolist() == [2, 3]


def test_workers_use_one_thread_and_the_caller_keeps_its_own(monkeypatch):
    torch = pytest.importorskip("torch")
    for library in ("OMP", "OPENBLAS", "MKL"):
        monkeypatch.setenv(f"{library}_NUM_THREADS", "2")
    from threadpoolctl import threadpool_info

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    pools = [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()]
    try:
        for backend in ("loky", "threading"):
            with joblib.parallel_config(backend=backend, n_jobs=2):
                assert (sweep(torch_threads, grid(x=range(4))).values["value"] == 1).all()
                assert (sweep(blas_threads, grid(x=range(4))).values["value"] == 1).all()
                with pytest.raises(RuntimeError, match="the text of the function"):
                    sweep(moody, grid(x=range(8)))
            assert torch.get_num_threads() == 2
            assert [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()] == pools
        assert (sweep(torch_threads, grid(x=[0]), n_jobs=1).values["value"] == 2).all()
    finally:
        torch.set_num_threads(before)


def test_the_ambient_configuration_is_left_as_it_was():
    with joblib.parallel_config(backend="loky", n_jobs=2, inner_max_num_threads=2) as config:
        before = dict(config)
        sweep(product, grid(a=[1], b=[1]))
        assert joblib.parallel.get_active_backend()[0] is before["backend"]
        assert before["backend"].inner_max_num_threads == 2


# Cache


def test_results_from_the_cache_are_bit_identical(tmp_path):
    arguments = {"repeats": 4, "seed": 5, "cache_dir": tmp_path / "new" / "folder"}
    fresh = sweep(mixed, grid(n=[3, 3]), **arguments)
    assert (fresh.n_computed, fresh.n_cached) == (8, 0)
    cached = sweep(mixed, grid(n=[3, 3]), **arguments)
    assert (cached.n_computed, cached.n_cached) == (0, 8)
    identical(fresh, cached)
    identical(fresh, sweep(mixed, grid(n=[3, 3]), repeats=4, seed=5))


def test_an_enlarged_grid_reuses_every_old_cell(tmp_path):
    small = sweep(draws, grid(lr=[0.1, 0.2]), repeats=2, seed=0, cache_dir=tmp_path)
    large = sweep(draws, grid(lr=[0.3, 0.2, 0.1]), repeats=3, seed=0, cache_dir=tmp_path)
    assert (large.n_computed, large.n_cached) == (5, 4)
    assert np.array_equal(large.values["value"][[2, 1], :2], small.values["value"])


def test_cached_calls_are_not_made_again(tmp_path):
    calls = tmp_path / "calls"
    calls.mkdir()
    for _ in range(2):
        sweep(recorded, grid(x=[1, 2], folder=[str(calls)]), cache_dir=tmp_path / "cache")
    assert (calls / "1").read_text() == "called\n"


def test_function_version_seed_and_point_are_in_the_key(tmp_path):
    points = grid(lr=[0.1])
    base = {"seed": 0, "cache_dir": tmp_path}
    assert sweep(draws, points, **base).n_computed == 1
    assert sweep(draws, points, **base, version="2").n_computed == 1
    assert sweep(draws, points, **{**base, "seed": 1}).n_computed == 1
    assert sweep(other_draws, points, **base).n_computed == 1
    assert sweep(draws, [{"lr": 1}], **base).n_computed == 1
    assert sweep(draws, [{"lr": 1.0}], **base).n_computed == 1
    assert sweep(draws, points, **base).n_cached == 1


def other_draws(lr, rng):
    return rng.standard_normal(4) - lr


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "pickle", "swapped", "other arrays", "unreadable zip"])
def test_a_damaged_file_is_computed_again(tmp_path, damage):
    points = grid(lr=[0.1, 0.2])
    fresh = sweep(draws, points, seed=0, cache_dir=tmp_path)
    first, second = cells(tmp_path)
    content = first.read_bytes()
    if damage == "empty":
        first.write_bytes(b"")
    elif damage == "cut":
        first.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        first.write_text("hello")
    elif damage == "pickle":
        first.write_bytes(pickle.dumps({"value": 1}))
    elif damage == "swapped":
        second.replace(first)
    elif damage == "other arrays":
        np.savez(first.open("wb"), value=np.ones(4))
    else:
        first.write_bytes(content[:-22])
    repaired = sweep(draws, points, seed=0, cache_dir=tmp_path)
    assert repaired.n_computed == (2 if damage == "swapped" else 1)
    identical(fresh, repaired)
    assert sweep(draws, points, seed=0, cache_dir=tmp_path).n_cached == 2


def test_no_flipped_byte_can_change_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # a hundred of them take seconds on a busy disk
    fresh = sweep(draws, grid(lr=[0.1]), seed=0, cache_dir=tmp_path)
    (path,) = cells(tmp_path)
    content = path.read_bytes()
    for position in range(0, len(content), 11):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x5A]) + content[position + 1 :])
        identical(fresh, sweep(draws, grid(lr=[0.1]), seed=0, cache_dir=tmp_path))


def test_a_pickle_in_the_cache_is_never_opened(tmp_path):
    sweep(product, grid(a=[1], b=[2]), cache_dir=tmp_path)
    (path,) = cells(tmp_path)
    with np.load(path) as file:
        header = file["header"]
    np.savez(path.open("wb"), header=header, value0=np.array([Bomb()], dtype=object))
    assert sweep(product, grid(a=[1], b=[2]), cache_dir=tmp_path).values["value"] == 2


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def test_cache_files_are_readable_by_the_group_and_nothing_else_is_left(tmp_path):
    old = os.umask(0o022)
    try:
        sweep(product, grid(a=[1, 2], b=[2]), cache_dir=tmp_path)
    finally:
        os.umask(old)
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz"}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_sweeps_may_share_a_folder_at_the_same_time(tmp_path):
    threads = [
        threading.Thread(target=sweep, args=(slow, grid(x=range(8))), kwargs={"seed": 0, "cache_dir": tmp_path})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = sweep(slow, grid(x=range(8)), seed=0, cache_dir=tmp_path)
    assert again.n_cached == 8
    assert len(list(tmp_path.iterdir())) == 8
    identical(again, sweep(slow, grid(x=range(8)), seed=0))


# Interruptions

CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {tests!r})
from symlearn.sweep import grid, sweep
from test_sweep import slow
try:
    sweep(slow, grid(x=range(30)), repeats=2, seed=11, n_jobs=2, cache_dir={folder!r})
except KeyboardInterrupt:
    sys.exit(77)
"""


@contextlib.contextmanager
def child_sweep(folder):
    code = CHILD.format(tests=os.path.dirname(os.path.abspath(__file__)), folder=str(folder))
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=SRC,
        env={**os.environ, "SECONDS_PER_CALL": "0.1"},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for name in os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []:
            if f"-{child.pid}-" in name or f"_{child.pid}_" in name:  # what SIGKILL kept joblib from removing
                path = os.path.join("/dev/shm", name)
                os.rmdir(path) if os.path.isdir(path) else os.unlink(path)


def group_is_gone(pgid):
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return True
    return False


def assert_resumes(folder):
    n_found = len(cells(folder))
    assert 0 < n_found < 60
    resumed = sweep(slow, grid(x=range(30)), repeats=2, seed=11, cache_dir=folder)
    assert (resumed.n_computed, resumed.n_cached) == (60 - n_found, n_found)
    identical(resumed, sweep(slow, grid(x=range(30)), repeats=2, seed=11, n_jobs=2))


def test_a_killed_sweep_resumes_where_it_was(tmp_path):
    with child_sweep(tmp_path) as child:
        wait_for(lambda: len(cells(tmp_path)) >= 6)
        os.killpg(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert_resumes(tmp_path)


def test_ctrl_c_stops_the_workers_and_keeps_what_is_finished(tmp_path):
    with child_sweep(tmp_path) as child:
        wait_for(lambda: len(cells(tmp_path)) >= 6)
        os.killpg(child.pid, signal.SIGINT)  # a terminal sends it to the whole group
        assert child.wait(timeout=120) == 77
        wait_for(lambda: group_is_gone(child.pid))
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz"}
    assert_resumes(tmp_path)


@pytest.fixture(scope="module")
def dask_client(tmp_path_factory):
    distributed = pytest.importorskip("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECONDS_PER_CALL", "0.1")  # inherited by the workers
        cluster = distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=":0",
            local_directory=str(tmp_path_factory.mktemp("workers")),
            silence_logs=logging.CRITICAL,
        )
    with cluster, distributed.Client(cluster) as client:
        yield client


def test_a_lost_dask_worker_costs_nothing_but_time(tmp_path, dask_client):
    workers, finished = dask_client.run(os.getpid), []

    def kill_one():
        wait_for(lambda: len(cells(tmp_path)) >= 6)
        os.kill(next(iter(workers.values())), signal.SIGKILL)
        finished.append(len(cells(tmp_path)))

    killer = threading.Thread(target=kill_one)
    killer.start()
    with joblib.parallel_config(backend="dask"):
        result = sweep(slow, grid(x=range(30)), repeats=2, seed=11, cache_dir=tmp_path)
    killer.join()
    assert finished[0] < 60
    dask_client.wait_for_workers(2, timeout=120)
    assert set(dask_client.run(os.getpid).values()) != set(workers.values())
    assert (result.n_computed, result.n_cached) == (60, 0)
    identical(result, sweep(slow, grid(x=range(30)), repeats=2, seed=11))
    assert sweep(slow, grid(x=range(30)), repeats=2, seed=11, cache_dir=tmp_path).n_cached == 60


def test_a_call_that_kills_every_dask_worker_is_an_error_and_not_a_wait(tmp_path, dask_client):
    dask_client.wait_for_workers(2, timeout=120)
    with joblib.parallel_config(backend="dask"):
        with pytest.raises(RuntimeError, match="the workers failed before all calls were finished: KilledWorker"):
            sweep(poison, grid(x=range(6)), cache_dir=tmp_path)
        dask_client.wait_for_workers(2, timeout=120)
        assert sweep(poison, grid(x=[7, 8])).n_computed == 2
        with pytest.raises(RuntimeError, match=r"function failed at \{'x': 3\}: ZeroDivisionError: the text"):
            sweep(moody, grid(x=range(6)))
    assert 0 < len(cells(tmp_path)) < 6


def test_a_dead_process_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="the workers failed before all calls were finished: TerminatedWorker"):
        sweep(poison, grid(x=range(6)), n_jobs=2, cache_dir=tmp_path)
    assert sweep(product, grid(a=[1, 2], b=[1]), n_jobs=2).n_computed == 2


# Failures


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_failure_names_the_point_and_keeps_the_error(tmp_path, n_jobs):
    with pytest.raises(RuntimeError, match=r"function failed at \{'x': 3\}: ZeroDivisionError: the text of") as caught:
        sweep(moody, grid(x=[0, 1, 2, 3]), n_jobs=n_jobs, cache_dir=tmp_path)
    cause = caught.value.__cause__
    assert isinstance(cause, ZeroDivisionError)
    assert str(cause) == "the text of the function"
    if n_jobs == 1:
        assert len(cells(tmp_path)) == 3
    else:
        assert "in moody" in cause.__notes__[0]


def test_a_failure_names_the_repeat():
    def third(rng, seen=[]):  # noqa: B006
        seen.append(1)
        return 1 / (3 - len(seen))

    with pytest.raises(RuntimeError, match=r"function failed at \{\}, repeat 2: ZeroDivisionError"):
        sweep(third, [{}], repeats=4, seed=0)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_error_that_cannot_be_pickled_keeps_its_text(n_jobs):
    with pytest.raises(RuntimeError, match=r"function failed at \{'x': \d\}: Awkward: salt and pepper") as caught:
        sweep(awkward, grid(x=[0, 1]), n_jobs=n_jobs)
    assert "salt and pepper" in str(caught.value.__cause__)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_function_that_exits_does_not_end_the_program(n_jobs):
    with pytest.raises(RuntimeError, match="SystemExit: no reason"):
        sweep(exiting, grid(x=[0, 1]), n_jobs=n_jobs)


def test_missing_and_surplus_arguments_are_failures_at_a_point():
    with pytest.raises(RuntimeError, match=r"\{'a': 1\}: TypeError: .*missing 1 required positional argument: 'b'"):
        sweep(product, grid(a=[1]))
    with pytest.raises(RuntimeError, match="TypeError: .*unexpected keyword argument 'c'"):
        sweep(product, grid(a=[1], b=[1], c=[1]))


def test_a_failure_gives_no_warning_of_unused_results(recwarn):
    with pytest.raises(RuntimeError, match="function failed"):
        sweep(moody, grid(x=[3, 1, 2, 4, 5, 6, 7, 8]), n_jobs=2)
    assert not [w for w in recwarn if "successfully executed" in str(w.message) or "cancelled" in str(w.message)]


# Progress, scripts and notebooks


def test_the_bar_counts_finished_and_cached_calls(tmp_path, capsys):
    sweep(draws, grid(lr=[0.1]), repeats=2, seed=0, cache_dir=tmp_path)
    assert capsys.readouterr().err == ""
    sweep(draws, grid(lr=[0.1, 0.2]), repeats=2, seed=0, cache_dir=tmp_path, progress=True)
    text = capsys.readouterr().err
    assert "2/4" in text
    assert "4/4" in text


SCRIPT = """
from symlearn.sweep import grid, sweep

def triple(x):
    return {factor} * x

if __name__ == "__main__":
    result = sweep(triple, grid(x=[1, 2]), cache_dir="cache")
    print(result.n_computed, result.values["value"].ravel().tolist())
"""


def run(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": SRC}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_functions_of_a_script_are_cached_by_their_source(tmp_path):
    script = tmp_path / "script.py"
    for factor, expected in [(3, "2 [3, 6]"), (3, "0 [3, 6]"), (4, "2 [4, 8]")]:
        script.write_text(SCRIPT.format(factor=factor))
        assert run(tmp_path, "script.py").stdout.strip() == expected


def test_a_function_without_name_or_source_is_not_cached(tmp_path):
    process = run(tmp_path, "-c", SCRIPT.format(factor=3))
    assert "function must be of a module, script or notebook when cached, got __main__.triple" in process.stderr


def test_functions_of_a_notebook_are_cached_and_sent_to_other_processes(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    define = "from symlearn.sweep import grid, sweep\ndef triple(x):\n    return {} * x"
    call = (
        "r = sweep(triple, grid(x=[1, 2]), n_jobs=2, cache_dir='cache')\nprint(r.n_computed, r.values['value'][1, 0])"
    )
    sources = [define.format(3), call, call, define.format(5), call]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [cell.outputs[0].text.strip() for cell in notebook.cells if cell.outputs]
    assert printed == ["2 6", "0 6", "2 10"]


# Bad input


class Color(enum.IntEnum):
    RED = 1


def nested():
    def inner(x):
        return x

    return inner


POINTS = [{"a": 1, "b": 2}]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: grid(), ValueError, "axes must be at least one, got none"),
        (lambda: grid(a=[]), ValueError, "a must be a sequence of at least one value, got none"),
        (lambda: grid(a=np.array([])), ValueError, "a must be a sequence of at least one value, got none"),
        (lambda: grid(a="relu"), TypeError, "a must be a sequence of values, got str"),
        (lambda: grid(a=3), TypeError, "a must be a sequence of values, got int"),
        (lambda: grid(a={1, 2}), TypeError, "a must be a sequence of values, got set"),
        (lambda: grid(a=(i for i in "ab")), TypeError, "a must be a sequence of values, got generator"),
        (lambda: grid(a=np.ones((2, 2))), ValueError, r"a must be one-dimensional, got shape \(2, 2\)"),
        (lambda: grid(a=np.float64(3)), ValueError, r"a must be one-dimensional, got shape \(\)"),
        (lambda: sweep(3, POINTS), TypeError, "function must be callable, got int"),
        (lambda: sweep(None, POINTS), TypeError, "function must be callable, got NoneType"),
        (lambda: sweep(product, []), ValueError, "points must be at least one, got none"),
        (lambda: sweep(product, {"a": 1}), TypeError, "points must be a sequence of dicts, got dict"),
        (lambda: sweep(product, "ab"), TypeError, "points must be a sequence of dicts, got str"),
        (lambda: sweep(product, 7), TypeError, "points must be a sequence of dicts, got int"),
        (lambda: sweep(product, [(1, 2)]), TypeError, r"points\[0\] must be a dict, got tuple"),
        (lambda: sweep(product, [{1: 2}]), TypeError, r"points\[0\] must be a dict whose names are strings, got int"),
        (
            lambda: sweep(product, [*POINTS, {"a": 1}]),
            ValueError,
            r"points\[1\] must be of the names 'a', 'b', as points\[0\], got 'a'",
        ),
        (lambda: sweep(product, [*POINTS, {}]), ValueError, r"points\[1\] must be of the names .*, got none"),
        (
            lambda: sweep(product, [{"a": [1], "b": 2}]),
            TypeError,
            r"points\[0\]\['a'\] must be a float, int, str, bool, None or a tuple of them, got list",
        ),
        (lambda: sweep(product, [{"a": 1, "b": np.ones(2)}]), TypeError, r"\['b'\] must be a float, .*, got ndarray"),
        (lambda: sweep(product, [{"a": 1j, "b": 2}]), TypeError, "got complex"),
        (lambda: sweep(product, [{"a": b"x", "b": 2}]), TypeError, "got bytes"),
        (lambda: sweep(product, [{"a": (1, {}), "b": 2}]), TypeError, r"points\[0\]\['a'\]\[1\] must be .*, got dict"),
        (lambda: sweep(product, [{"a": Color.RED, "b": 2}]), TypeError, "got Color"),
        (lambda: sweep(product, [{"a": object(), "b": 2}]), TypeError, "got object"),
        (lambda: sweep(draws, [{"rng": 1}], seed=0), ValueError, "points must be without the name 'rng' when seed is"),
        (lambda: sweep(product, POINTS, repeats=0), ValueError, "repeats must be >= 1, got 0"),
        (lambda: sweep(product, POINTS, repeats=1.0), TypeError, "repeats must be an integer, got float"),
        (lambda: sweep(product, POINTS, repeats=True), TypeError, "repeats must be an integer, got bool"),
        (lambda: sweep(product, POINTS, repeats=2), ValueError, "seed must be given when repeats > 1, got None"),
        (lambda: sweep(product, POINTS, seed=-1), ValueError, "seed must be >= 0, got -1"),
        (lambda: sweep(product, POINTS, seed=0.5), TypeError, "seed must be an integer, got float"),
        (lambda: sweep(product, POINTS, seed="0"), TypeError, "seed must be an integer, got str"),
        (lambda: sweep(product, POINTS, n_jobs=0), ValueError, "n_jobs must be None or an integer other than 0, got 0"),
        (lambda: sweep(product, POINTS, n_jobs=2.0), TypeError, "n_jobs must be an integer, got float"),
        (lambda: sweep(product, POINTS, n_jobs="all"), TypeError, "n_jobs must be an integer, got str"),
        (lambda: sweep(product, POINTS, version=1), TypeError, "version must be a string, got int"),
        (lambda: sweep(product, POINTS, progress="yes"), TypeError, "progress must be True or False, got str"),
        (lambda: sweep(product, POINTS, cache_dir=3), TypeError, "cache_dir must be a path, got int"),
        (lambda: sweep(product, POINTS, cache_dir=__file__), ValueError, "cache_dir must be a folder, got '.*a file"),
        (lambda: sweep(product, POINTS, cache_dir=__file__ + "/x"), ValueError, "cache_dir must be a folder, got"),
        (lambda: sweep(lambda x: x, grid(x=[1]), n_jobs=2), ValueError, "function must be importable.*got <lambda>"),
        (lambda: sweep(lambda x: x, grid(x=[1]), cache_dir="x"), ValueError, "function must be importable by name"),
        (lambda: sweep(nested(), grid(x=[1]), n_jobs=2), ValueError, "function must be .*, got nested.<locals>.inner"),
        (lambda: sweep(nested(), grid(x=[1]), cache_dir="x"), ValueError, "got nested.<locals>.inner"),
        (lambda: sweep(Caller(), grid(x=[1]), n_jobs=2), ValueError, "function must be importable.*got a Caller"),
        (lambda: sweep(growing, grid(n=[2, 3])), ValueError, r"same names and shapes .*\(2,\)\} at \{'n': 2\} and .*3"),
        (lambda: sweep(growing, grid(n=[2, 3]), n_jobs=2), ValueError, "the results of function must be of the same"),
        (lambda: sweep(renamed, grid(n=[0, 1])), ValueError, "the results of function must be of the same names"),
        (lambda: sweep(wrong, grid(kind=["none"])), TypeError, r"the result of function at \{.*\} must be .*NoneType"),
        (lambda: sweep(wrong, grid(kind=["none"] * 2), n_jobs=2), TypeError, "the result of function at .*NoneType"),
        (lambda: sweep(wrong, grid(kind=["text"])), TypeError, "must be a number, an array of numbers .*, got str"),
        (
            lambda: sweep(wrong, grid(kind=["object"])),
            TypeError,
            "must be a number, an array of numbers .*, got object",
        ),
        (lambda: sweep(wrong, grid(kind=["ragged"])), TypeError, "must be a number, an array of numbers .*, got list"),
        (lambda: sweep(wrong, grid(kind=["nested"])), TypeError, "must be a number, an array of numbers .*, got dict"),
        (lambda: sweep(empty_dict, grid(x=[1])), ValueError, "the result of function .* got an empty dict"),
        (lambda: sweep(numbered_dict, grid(x=[1])), TypeError, "must be a dict whose names are strings, got int"),
    ],
)
def test_bad_input_is_refused_in_one_voice(call, error, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=text):
        call()
    assert not list(tmp_path.iterdir())


class Caller:
    def __call__(self, x):
        return x
