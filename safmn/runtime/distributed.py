"""Distributed jobs: the rank of this process, joining and leaving, and the collective calls that training needs."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from safmn.errors import OptionError

logger = logging.getLogger(__name__)

_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>
_TIMEOUT = timedelta(minutes=30)  # a long validation or store build on rank 0 must not look like a dead rank


@dataclass(frozen=True)
class Ranks:
    """The place of this process in the job. ``local_rank`` counts the processes on one machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs, checkpoints and images."""
        return self.rank == 0

    @property
    def distributed(self) -> bool:
        """Whether there is more than one process."""
        return self.world_size > 1


def launched_by_torchrun() -> bool:
    """Return whether ``torchrun`` (or anything that sets its variables) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ and "LOCAL_RANK" in os.environ


def start_number() -> int:
    """Return how many times torchrun has restarted this job after a failure (``--max-restarts``)."""
    return int(os.environ.get(_RESTARTS, "0")) if launched_by_torchrun() else 0


def restarted() -> bool:
    """Return whether torchrun has restarted this job after a failure."""
    return start_number() > 0


def _leave_with_parent() -> None:
    """Ask Linux to send SIGTERM when torchrun dies, because then nothing would stop this rank."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _slurm_environment(port: int | None) -> None:
    """Translate SLURM's variables of this job step into those that torch.distributed reads."""
    if "SLURM_PROCID" not in os.environ:
        raise OptionError("--launcher slurm: this process was not started by srun (SLURM_PROCID is not set)")
    for name in ("SLURM_NODELIST", "SLURM_NTASKS"):
        if name not in os.environ:
            raise OptionError(f"--launcher slurm: {name} is not set; start with srun and --ntasks (docs/scaling.md)")
    try:
        hosts = subprocess.run(
            ["scontrol", "show", "hostnames", os.environ["SLURM_NODELIST"]],
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise OptionError(f"--launcher slurm: scontrol cannot list the hosts of this job ({said})") from error
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        WORLD_SIZE=os.environ["SLURM_NTASKS"],
        LOCAL_RANK=os.environ.get("SLURM_LOCALID", "0"),
        MASTER_ADDR=os.environ.get("MASTER_ADDR", hosts[0] if hosts else socket.gethostname()),
        MASTER_PORT=str(os.environ.get("MASTER_PORT", port or 29500)),
    )


def join(launcher: str, *, backend: str = "nccl", port: int | None = None, use_cuda: bool = False) -> Ranks:
    """Join the job that the launcher describes and return this process's place in it.

    Args:
        launcher: ``none``, ``pytorch`` (torchrun) or ``slurm``. A process started by torchrun always joins.
        backend: nccl or gloo; without ``use_cuda``, and where torch has no nccl (Windows), always gloo.
        port: the port of rank 0 for SLURM; torchrun sets its own.
        use_cuda: whether to compute on GPUs.

    Raises:
        OptionError: the launcher's environment is missing, or this torch cannot connect processes.
    """
    if launcher == "slurm":
        _slurm_environment(port)
    elif not launched_by_torchrun():
        if launcher == "pytorch":
            raise OptionError(
                "--launcher pytorch: start with `torchrun --nproc_per_node N safmn/train.py ...`, or with `python -m "
                "torch.distributed.run` in place of torchrun if there is no such command"
            )
        return Ranks()
    else:
        _leave_with_parent()
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    if ranks.distributed:
        if use_cuda:
            torch.cuda.set_device(ranks.local_rank)
        if not dist.is_available():
            raise OptionError("this build of torch has no torch.distributed: train in one process, without a launcher")
        _start_process_group(_usable_backend(backend) if use_cuda else "gloo", ranks)
    return ranks


def _usable_backend(backend: str) -> str:
    """Return the backend, or gloo with a warning where torch was built without nccl."""
    if backend == "nccl" and not dist.is_nccl_available():
        logger.warning("dist_params.backend: this build of torch has no nccl (Windows has none): using gloo")
        return "gloo"
    return backend


def _start_process_group(backend: str, ranks: Ranks) -> None:
    """Connect to the other ranks.

    torchrun keeps one key-value store across its restarts. Restarted ranks would find the addresses of dead ranks in it
    (pytorch issue 135712), so each start gets its own key prefix. This does not work with several nodes, because each
    node counts its own restarts; docs/scaling.md has the setting for that case.
    """
    store = None
    if restarted() and os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        from torch.distributed.rendezvous import rendezvous  # missing in some builds of torch

        shared, _, _ = next(rendezvous("env://", timeout=_TIMEOUT))
        store = dist.PrefixStore(f"start-{os.environ[_RESTARTS]}", shared)
        store.set_timeout(_TIMEOUT)
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world_size, timeout=_TIMEOUT)
    _control[:] = [dist.new_group(backend="gloo", timeout=_TIMEOUT)]


_control: list[Any] = []  # one item while this process is in a job


def control_group() -> Any:
    """Return the process group for messages other than tensors; it always uses the CPU."""
    return _control[0] if _control else None


def store() -> Any:
    """Return the job's key-value store."""
    return dist.distributed_c10d._get_default_store()  # torch has no public name for it


def is_active() -> bool:
    """Return whether this process is in a job with several processes."""
    return dist.is_available() and dist.is_initialized()


def leave() -> None:
    """Leave the job; do nothing in a single process."""
    _control.clear()
    if is_active():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for every rank; do nothing in a single process."""
    if is_active():
        dist.barrier()


def on_all_ranks(value: Any) -> list[Any]:
    """Return the ``value`` (any picklable object) of every rank, in rank order, on every rank."""
    if not is_active():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=control_group())
    return values


def mean_over_ranks(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Average each scalar over the ranks in one collective call."""
    if not (values and is_active()):
        return values
    stacked = torch.stack([value.detach().float() for value in values.values()])  # (number of losses,)
    dist.all_reduce(stacked)
    return dict(zip(values, stacked / dist.get_world_size(), strict=True))
