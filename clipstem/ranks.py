"""Ranks: processes with a device each that train one model together, on one machine or several.

They are started here, one for each device of this machine, or by `torchrun` or `srun`. Each runs
the same program; what must happen once is done by the first.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from torch import Tensor
from torch.multiprocessing.spawn import (
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from clipstem.config import TrainerConfig
from clipstem.question import ClipstemError
from clipstem.stopping import SIGNALS, STOPPED

T = TypeVar("T")

MEETING = "CLIPSTEM_MEETING"  # where the ranks that are started here find each other

GRACE_SECONDS = 10
"""How long the other ranks have to end by themselves when one has failed."""


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many ranks there are; 1 where nobody has joined others."""
    return dist.get_world_size() if dist.is_initialized() else 1


def on_node() -> int:
    """How many of them are on each machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process does what must happen once."""
    return rank() == 0


def gathered(mine: T) -> list[T]:
    """What every rank gives, in their order."""
    if world() == 1:
        return [mine]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, mine)
    return found


def mean(mine: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of every rank's scalars, by name."""
    if world() == 1:
        return mine
    values = torch.stack(list(mine.values()))
    dist.all_reduce(values)
    return dict(zip(mine, values / world(), strict=True))


def any_of(mine: bool) -> bool:
    """Whether it is true of any rank."""
    return any(gathered(mine))


def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Give tensors the values that they have on the first rank."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def gathered_rows(rows_ND: Tensor) -> Tensor:
    """The rows of all ranks, [world · N, D], with gradients; every rank gives as many."""
    return _GatherRows.apply(rows_ND)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor) -> Tensor:
        all_MD = rows_ND.new_empty(world() * len(rows_ND), *rows_ND.shape[1:])
        dist.all_gather_into_tensor(all_MD, rows_ND.contiguous())
        return all_MD

    @staticmethod
    def backward(ctx: Any, grad_MD: Tensor) -> Tensor:
        grad_MD = grad_MD.contiguous()
        dist.all_reduce(grad_MD)  # every rank's loss has looked at these rows
        return grad_MD.chunk(world())[rank()]


def from_first(make: Callable[[], T]) -> T:
    """What the first rank makes, for all of them; its mistake is everybody's.

    Raises:
        ClipstemError: on every rank, if the first raises it.
    """
    made: list[Any] = [None, None]
    if is_first():
        try:
            made[0] = make()
        except ClipstemError as error:
            made[1] = error
    if world() > 1:
        dist.broadcast_object_list(made, src=0)
    if made[1] is not None:
        raise made[1]
    return made[0]


# ---- how they begin and end


def to_start(trainer: TrainerConfig) -> int:
    """How many ranks this process shall start: none if it is one itself, or is alone.

    Raises:
        ClipstemError: if their number cannot be known.
    """
    if _by_launcher():
        return 0
    gpus = torch.cuda.device_count() if trainer.device != "cpu" else 0
    if trainer.devices is not None:
        if 0 < gpus < trainer.devices:
            raise ClipstemError(
                f"conf key 'trainer.devices': {trainer.devices} GPUs are asked for, but torch sees "
                f"{gpus} here; give at most as many, or null for all"
            )
        return trainer.devices if trainer.devices > 1 else 0
    if not gpus:
        raise ClipstemError(
            "conf key 'trainer.devices': null takes every GPU, but torch sees none here; give "
            "the number of processes, such as trainer.device=cpu trainer.devices=2"
        )
    return gpus


def _by_launcher() -> bool:
    """Whether torchrun, srun or `start` has made this process one of several."""
    return "WORLD_SIZE" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def start(count: int, function: Callable[[Any], object], config: Any) -> None:
    """Run `function(config)` as that many ranks of this machine, and wait for their end.

    Signals to stop are passed on. When one rank fails, the others are ended.

    Raises:
        ClipstemError: what the rank that failed said, or how it was killed.
        SystemExit: with the status `STOPPED`, if they stopped because they were asked to.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = mp.get_context("spawn").SimpleQueue()
        meeting = f"file://{folder}/ranks"
        # torch gives this function no types.
        ranks: Any = start_processes(  # type: ignore[no-untyped-call]
            _run_as_rank, (function, config, count, meeting, said), count, join=False
        )

        asked: list[int] = []

        def pass_on(number: int, frame: Any) -> None:
            asked.append(number)
            for process in ranks.processes:
                if process.is_alive():
                    os.kill(process.pid, number)

        before = {number: signal.signal(number, pass_on) for number in SIGNALS}
        try:
            while not ranks.join(grace_period=GRACE_SECONDS):
                pass
        except (ProcessExitedException, ProcessRaisedException) as error:
            if not said.empty():
                raise ClipstemError(said.get()) from None
            statuses = [process.exitcode for process in ranks.processes]
            # Also before they have begun to listen, or in torch's wait for the others, which hears
            # nothing, so that it takes a SIGKILL.
            killed = {-number for number in (*SIGNALS, signal.SIGKILL)}
            if asked and {*statuses} <= {0, STOPPED, *killed}:
                raise SystemExit(STOPPED) from None
            for number, status in enumerate(statuses):
                if status < 0 and status != -signal.SIGTERM:  # ours, to end the others
                    name = signal.Signals(-status).name
                    raise ClipstemError(
                        f"rank {number} of {count} was ended by {name}; go on with resume=true"
                    ) from None
            if STOPPED in statuses:
                raise SystemExit(STOPPED) from None
            raise error
        except KeyboardInterrupt:
            _interrupt(ranks.processes)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _interrupt(processes: Sequence[Any]) -> None:
    """End ranks as Ctrl-C does, which may have reached this process alone, as in a notebook."""
    for ask in (lambda _: None, lambda it: os.kill(it.pid, signal.SIGINT), lambda it: it.kill()):
        end = time.monotonic() + GRACE_SECONDS / 2
        for process in processes:
            if process.is_alive():
                ask(process)
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))


def _run_as_rank(
    rank: int, function: Callable[[Any], object], config: Any, count: int, meeting: str, said: Any
) -> None:
    os.environ |= {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)},
        **{"LOCAL_WORLD_SIZE": str(count), MEETING: meeting},
    }
    try:
        function(config)
    except ClipstemError as error:
        said.put(str(error))
        sys.exit(2)


@contextmanager
def joined(trainer: TrainerConfig) -> Iterator[None]:
    """Meanwhile this process is a rank among those that it was started with, if it was.

    Raises:
        ClipstemError: if the ranks are not spread evenly over the machines, or it is not told
            which rank it is.
    """
    if not _by_launcher():
        yield
        return
    if "WORLD_SIZE" not in os.environ:
        _take_from_slurm()
    needed = ("RANK",) if MEETING in os.environ else ("RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        raise ClipstemError(
            f"WORLD_SIZE is set, but {', '.join(missing)} is not: which of several processes this "
            "is cannot be told; start them with torchrun or srun, or unset WORLD_SIZE"
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))  # left out where a machine has one process
    on_cuda = trainer.device != "cpu" and torch.cuda.is_available()
    if on_cuda:
        if local >= torch.cuda.device_count():
            raise ClipstemError(
                f"rank {os.environ['RANK']} is number {local} on its machine, but torch sees "
                f"{torch.cuda.device_count()} GPUs; every process must see all GPUs of its machine "
                "(srun without --gpus-per-task and --gpu-bind), and there may be no more of them"
            )
        torch.cuda.set_device(local)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        init_method=os.environ.get(MEETING, "env://"),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    try:
        node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
        nodes = gathered(node)
        count = nodes.count(node)
        os.environ |= {"LOCAL_WORLD_SIZE": str(count), "NODE_RANK": str(rank() // count)}
        if any(nodes.count(name) != count for name in nodes) or rank() % count != local:
            raise ClipstemError(
                f"the {world()} ranks are not spread evenly over {', '.join(sorted(set(nodes)))}; "
                "give every machine as many, in blocks (srun --ntasks-per-node)"
            )
        if not on_cuda and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // count))
        yield
    finally:
        dist.destroy_process_group()


def _take_from_slurm() -> None:
    """Give torch's names to what srun says."""
    slurm = SLURMEnvironment(auto_requeue=False)
    os.environ |= {
        "RANK": str(slurm.global_rank()),
        "LOCAL_RANK": str(slurm.local_rank()),
        "WORLD_SIZE": str(slurm.world_size()),
        "MASTER_ADDR": slurm.main_address,
        "MASTER_PORT": str(slurm.main_port),
    }
