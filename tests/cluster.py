"""A real SLURM on this machine for the tests: own key, ports and folder; stopped at the end.

Two nodes of this one machine: tests of an array use the first, what needs several has both. Needs
Debian's `slurm-wlm` and `munge`, and root, who alone may start tasks as others.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NODES = ("one", "two")
CPUS = 4

# GraceTime is what a pre-empted task has to save, cred_expire how long a requeued one must wait;
# config_overrides lets a node have more cores than the machine.
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
GresTypes=gpu
KillWait=10
MessageTimeout=60
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} Gres=gpu:8
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} Gres=gpu:8
PartitionName=low Nodes=one Default=YES PriorityTier=1 GraceTime=100
PartitionName=high Nodes=one PriorityTier=10 PreemptMode=OFF
PartitionName=both Nodes=one,two PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str:
    """Why there can be no SLURM here; empty if there can."""
    if missing := [
        it for it in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(it)
    ]:
        return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "starting slurmd needs root"


@contextmanager
def running() -> Iterator[dict[str, str]]:
    """Start a cluster; gives what must be in the environment of whoever uses it."""
    with ExitStack() as stack:
        # Not pytest's own folder: munge insists on parents that nobody else may enter or write.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        munge = _write_files(folder)
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

        def daemon(log: str, *command: str, user: str | None = None) -> None:
            output = stack.enter_context((folder / f"{log}.log").open("w"))
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, user=user, group=user
            )
            stack.callback(_stop, process)

        said = [f"--{it}-file={munge}/{it}" for it in ("key", "pid", "log", "seed")]
        socket_path = munge / "socket"
        daemon("munged", "munged", "--foreground", f"--socket={socket_path}", *said, user="munge")
        wait_for(socket_path.exists, "munged")
        daemon("slurmctld", "slurmctld", "-D")
        for node in NODES:
            daemon(node, "slurmd", "-D", "-N", node)
        wait_for(lambda: _idle_nodes(environment) == len(NODES), "slurmctld and slurmd")
        stack.callback(cancel_all, environment)
        yield environment


def _write_files(folder: Path) -> Path:
    """Configuration, and the folders that the daemons want; returns munge's."""
    for name in ("state", *NODES, "munge"):
        (folder / name).mkdir()
    for path in (folder, folder / "munge"):
        path.chmod(0o755)
    munge = folder / "munge"
    (munge / "key").write_bytes(secrets.token_bytes(128))
    (munge / "key").chmod(0o400)
    for path in (munge, munge / "key"):
        shutil.chown(path, "munge", "munge")
    values = {"host": socket.gethostname(), "ports": _free_ports(3), "folder": folder}
    (folder / "slurm.conf").write_text(CONF.format(cpus=CPUS, **values))
    gpus = [folder / f"gpu{number}" for number in range(8)]  # SLURM only looks whether they exist
    for gpu in gpus:
        gpu.touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
    return munge


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for it in sockets:
            it.bind(("127.0.0.1", 0))
        return [it.getsockname()[1] for it in sockets]


def _idle_nodes(environment: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--Node", "--states=idle", "--partition=both"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return len(done.stdout.splitlines())


def cancel_all(environment: dict[str, str]) -> None:
    """So that nothing outlives the daemons."""
    subprocess.run(["scancel", "--me", "--signal=KILL", "--full"], env=environment, timeout=60)
    subprocess.run(["scancel", "--me"], env=environment, timeout=60)
    wait_for(lambda: not squeue(environment), "the end of all tasks")


def squeue(environment: dict[str, str]) -> list[str]:
    """What waits or runs."""
    command = ["squeue", "--noheader", "--array", "--format=%F_%K %T %P"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(is_so: Callable[[], bool], what: str, seconds: float = 600) -> None:
    """Wait until something is so; the limit only keeps a failed test from hanging."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not so within {seconds:g} s")
        time.sleep(0.2)
