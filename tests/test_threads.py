"""Many threads and processes call one upscaler at the same time, and each gets the right image."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from check_threads import images
from repeater import repeated, repeater
from torch import Tensor, nn

from safmn import Upscaler
from safmn.archs import SAFMN, SAFMNv3
from safmn.inference.backends import Backend, available_backends
from safmn.inference.backends.torch_backends import CudaGraphs, Recording
from safmn.runtime.threads import Lock, SharedLock

INSTALLED = [name for name, problem in available_backends("cpu").items() if problem is None and name != "compile"]
CALLS, THREADS = 60, 8
PICTURES = images(CALLS)


def small(dim: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return SAFMN(dim=dim, n_blocks=1).eval().requires_grad_(False)


def sees_all() -> nn.Module:
    torch.manual_seed(0)
    return SAFMNv3(dim=16, num_blocks=1).eval().requires_grad_(False)


def in_threads(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """Apply the function to each item in threads that all begin at the same time; return the results."""
    together = threading.Barrier(THREADS)
    with ThreadPoolExecutor(THREADS, initializer=together.wait) as pool:
        return list(pool.map(function, items))


def check(upscaler: Upscaler, expected: list[np.ndarray], pictures: list[np.ndarray]) -> None:
    """Assert that all results are right: no value differs by more than 1, and only few differ (rounding ties)."""
    results = in_threads(upscaler, pictures)
    errors = [np.abs(a.astype(int) - b) for a, b in zip(results, expected, strict=True)]
    assert sum(error.max() <= 1 for error in errors) == len(pictures)
    assert np.mean([(error > 0).mean() for error in errors]) <= 2e-3


@pytest.mark.parametrize("name", INSTALLED)
def test_concurrent_first_calls_with_different_sizes(name: str) -> None:
    """The upscaler was never called before, sizes differ, and "auto" chooses its back end while all calls wait."""
    alone = Upscaler(small(), device="cpu", backend="eager", tile=0)
    check(Upscaler(small(), device="cpu", backend=name, tile=0), [alone(picture) for picture in PICTURES], PICTURES)


@pytest.mark.parametrize("name", INSTALLED)
def test_concurrent_calls_with_one_size(name: str) -> None:
    """Some back ends take a different code path for a repeated size."""
    pictures = [np.ascontiguousarray(picture[:32, :40]) for picture in PICTURES]
    alone = Upscaler(small(), device="cpu", backend="eager", tile=0)
    check(Upscaler(small(), device="cpu", backend=name, tile=0), [alone(picture) for picture in pictures], pictures)


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("how", ["strips", "blended", "ensemble", "transparent"])
def test_concurrent_calls_in_every_mode_of_the_upscaler(name: str, how: str) -> None:
    pictures = [np.dstack([p, p[..., :1]]) if how == "transparent" else p for p in PICTURES[:16]]
    network = sees_all() if how == "blended" else small()
    arguments: dict[str, Any] = {"device": "cpu", "self_ensemble": how == "ensemble"}
    arguments["tile"] = {"strips": 16, "blended": 32}.get(how, "auto")
    alone = Upscaler(network, backend="eager", **arguments)
    check(Upscaler(network, backend=name, **arguments), [alone(picture) for picture in pictures], pictures)


@pytest.mark.slow
@pytest.mark.skipif(available_backends("cpu")["compile"] is not None, reason="no C++ compiler or no headers of Python")
def test_concurrent_calls_with_the_compiler() -> None:
    alone = Upscaler(small(), device="cpu", backend="eager", tile=0)
    upscaler = Upscaler(small(), device="cpu", backend="compile", tile=0)
    check(upscaler, [alone(picture) for picture in PICTURES], PICTURES)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["cuda-graphs", "onnxruntime", "eager", "auto"])
def test_concurrent_calls_on_a_gpu(name: str) -> None:
    problem = available_backends("cuda")[name]
    if problem:
        pytest.skip(problem)
    alone = Upscaler(small(), device="cuda", backend="eager", tile=0)
    expected = [alone(picture) for picture in PICTURES]
    check(Upscaler(small(), device="cuda", backend=name, tile=0), expected, PICTURES)


@pytest.mark.parametrize("name", INSTALLED)
def test_many_upscalers_are_made_at_the_same_time(name: str) -> None:
    """Torch's exporter allows only one thread at a time."""
    image = PICTURES[0]
    networks = [small(dim=8 + 4 * (index % 2)) for index in range(THREADS)]
    results = in_threads(lambda network: Upscaler(network, device="cpu", backend=name)(image), networks)
    for network, result in zip(networks, results, strict=True):
        expected = Upscaler(network, device="cpu", backend="eager")(image)
        assert np.abs(result.astype(int) - expected).max() <= 1


class Meeting(nn.Module):
    """A network whose call ends only after another call has begun."""

    scale = halo = 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.meets = False

    def forward(self, x: Tensor) -> Tensor:
        if self.meets:
            MEETING.wait(timeout=30)
        return x * self.weight


MEETING = threading.Barrier(2)


def test_calls_run_at_the_same_time() -> None:
    network = Meeting()
    upscaler = Upscaler(network, device="cpu", backend="eager", tile=0)
    network.meets = True  # not while the upscaler tries what sizes the network takes
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(upscaler, PICTURES[:2]))
    assert all(np.array_equal(result, picture) for result, picture in zip(results, PICTURES, strict=False))


class Forgetful(nn.Module):
    """A user's network that stores intermediate values in attributes."""

    scale = halo = 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x * self.weight
        self.last.fill_(float(x.flatten()[0]))
        time.sleep(0.01)
        return self.kept + self.last - x.flatten()[0]


def test_concurrent_calls_of_a_network_that_stores_values_in_attributes() -> None:
    check(Upscaler(Forgetful(), device="cpu", backend="eager", tile=0), PICTURES, PICTURES)


def test_a_call_keeps_the_weights_that_it_began_with() -> None:
    network = repeater()
    upscaler = Upscaler(network, device="cpu", backend="eager", tile=16)
    image = PICTURES[2]
    seen = []

    def halve(part: float) -> None:
        if not seen:
            with torch.no_grad():
                network.to_img[0].weight.mul_(0.5)
            seen.append(upscaler(image))  # a second call, after the first strip of the first

    assert np.array_equal(upscaler(image, progress=halve), repeated(image))
    assert np.abs(seen[0] - repeated(image) / 2).max() <= 0.5
    assert np.array_equal(upscaler(image), seen[0])


def test_the_first_call_may_be_in_inference_mode() -> None:
    for name in INSTALLED:
        upscaler = copy.copy(Upscaler(small(), device="cpu", backend=name))  # a copy has no back end yet
        with torch.inference_mode():
            image = torch.from_numpy(PICTURES[0]).permute(2, 0, 1).float() / 255
            first = upscaler(image)
        assert not first.is_inference()
        assert float((upscaler(image) - first).abs().max()) <= 2e-4


# Copies and other processes


@pytest.mark.parametrize("name", INSTALLED)
def test_pickled_and_copied_upscalers_give_the_same_results(name: str) -> None:
    upscaler = Upscaler(small(), device="cpu", backend=name, tile=32, self_ensemble=True)
    expected = upscaler(PICTURES[0])
    for other in (pickle.loads(pickle.dumps(upscaler)), copy.deepcopy(upscaler), copy.copy(upscaler)):
        assert (other.tile, other.self_ensemble, other.backend, other.scale) == (32, True, name, upscaler.scale)
        assert other._engine is None  # built at the first call
        if name == "auto":
            assert np.abs(other(PICTURES[0]).astype(int) - expected).max() <= 1
        else:
            assert np.array_equal(other(PICTURES[0]), expected)


def test_deep_and_pickled_copies_have_separate_weights() -> None:
    upscaler = Upscaler(repeater(), device="cpu", backend="eager")
    shared = copy.copy(upscaler)
    before = [weight.data_ptr() for weight in upscaler.network.parameters()]
    sent = bytes(ForkingPickler.dumps(upscaler))  # as for a process, where torch moves plain tensors to shared memory
    others = [copy.deepcopy(upscaler), pickle.loads(sent)]
    assert [weight.data_ptr() for weight in upscaler.network.parameters()] == before
    assert not any(weight.is_shared() for weight in upscaler.network.parameters())
    with torch.no_grad():
        upscaler.network.to_img[0].weight.zero_()
    assert not upscaler(PICTURES[0]).any()
    assert not shared(PICTURES[0]).any()
    for other in others:
        assert np.array_equal(other(PICTURES[0]), repeated(PICTURES[0]))


def test_a_network_of_a_local_class_can_be_copied() -> None:
    class Local(Forgetful):
        pass

    assert np.array_equal(copy.deepcopy(Upscaler(Local(), device="cpu", backend="eager"))(PICTURES[0]), PICTURES[0])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_upscaler_can_be_sent_to_processes(method: str) -> None:
    upscaler = Upscaler(small(), device="cpu", backend="native" if "native" in INSTALLED else "eager")
    expected = [upscaler(picture) for picture in PICTURES[:4]]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        results = list(pool.map(upscaler, PICTURES[:4]))
    assert all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True))


FORKED = """
import os, sys, threading
import numpy as np, torch
from check_threads import images
from safmn import Upscaler
from safmn.archs import SAFMN
from safmn.runtime.threads import BUILDING

torch.manual_seed(0)
upscaler = Upscaler(SAFMN(dim=24, n_blocks=1), device="cpu", backend=sys.argv[1])
image = np.tile(images(1)[0], (3, 3, 1))
expected = [upscaler(image) for _ in range(3)][-1]

def hold():
    with BUILDING, upscaler._lock:
        held.set()
        release.wait()

held, release = threading.Event(), threading.Event()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
children = []
for used in (True, False):
    child = os.fork()
    if child == 0:
        if used:
            for _ in range(3):
                assert np.abs(upscaler(image).astype(int) - expected).max() <= 1
            Upscaler(SAFMN(dim=24, n_blocks=1), device="cpu", backend=sys.argv[1])(image)
        (os._exit if sys.argv[1] == "onnxruntime" else sys.exit)(7)  # at exit, ONNX Runtime waits for the lost threads
    children.append(child)
release.set()
thread.join()
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [7, 7]
assert np.array_equal(upscaler(image), expected)
"""


@pytest.mark.forks
@pytest.mark.parametrize("name", [name for name in INSTALLED if name != "auto"])
def test_a_forked_process_can_upscale(name: str) -> None:
    """A fork copies no threads of OpenMP or of the back ends, and other threads held the locks."""
    path = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", FORKED, name]
    done = subprocess.run(
        command,
        # not by torch.set_num_threads: that starts torch's own threads, for which a forked process waits at its exit
        env=os.environ | {"PYTHONPATH": path, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "terminate" not in done.stderr


# Parts


class Remembered(CudaGraphs):
    """A back end that imitates CUDA graphs on the CPU: a recording computes slowly in fixed memory."""

    def __init__(self, network: nn.Module) -> None:
        Backend.__init__(self, network, device=torch.device("cpu"), precision="fp32")
        self.network, self._lock, self._recordings = network, Lock(), OrderedDict()
        self.recorded: list[tuple[int, ...]] = []

    def _on_device(self) -> Any:
        return contextlib.nullcontext()

    def _record(self, x: Tensor) -> Recording:
        self.recorded.append(tuple(x.shape))
        source = x.clone()
        result = self.network(source)

        def replay() -> None:
            time.sleep(0.002)
            result.copy_(self.network(source))

        return Recording(replay, source, result, Event())


class Event:
    """A GPU event that never waits."""

    def wait(self) -> None: ...

    record = synchronize = wait


def test_recordings_serve_one_call_at_a_time() -> None:
    network = small()
    backend = Remembered(network)
    inputs = [torch.rand(1, 3, 8 * (1 + index % 6), 16) for index in range(CALLS)]
    results = in_threads(backend, inputs)
    assert all(torch.equal(y, network(x)) for x, y in zip(inputs, results, strict=True))
    assert len(backend._recordings) == 4  # only the latest are kept


def test_a_size_is_recorded_once_for_any_number_of_threads() -> None:
    backend = Remembered(small())
    in_threads(backend, [torch.rand(1, 3, 16, 16) for _ in range(CALLS)])
    assert backend.recorded == [(1, 3, 16, 16)]


def test_readers_share_a_lock_and_writers_do_not() -> None:
    lock, inside, most, wrong = SharedLock(), [], [], []
    meeting = threading.Barrier(2)

    def read() -> None:
        with lock.reading():
            meeting.wait(timeout=30)
            wrong.extend(inside)

    def write() -> None:
        with lock.writing(), lock.reading():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            inside.pop()

    for _ in range(5):
        running = [threading.Thread(target=target) for target in (read, read, write, write)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    assert set(most) == {1}
    assert not wrong


def test_results_and_errors_reach_the_caller_in_a_forked_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safmn.runtime.threads._forked", threading.get_ident())
    network, seen = repeater(), []
    network.register_forward_pre_hook(lambda *_: seen.append(threading.current_thread().name))
    upscaler = Upscaler(network, device="cpu", backend="eager")
    assert np.array_equal(upscaler(PICTURES[0]), repeated(PICTURES[0]))
    assert set(seen) == {"safmn-forked"}  # it computed in a new thread
    with pytest.raises(ValueError, match="cannot upscale"):
        upscaler(np.zeros((0, 8, 3), np.uint8))
