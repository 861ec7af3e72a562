"""Start a real Slurm cluster of two nodes on this machine, all of whose files are in one folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

# Debian's packages slurmctld, slurmd, slurm-client and munge have these commands.
COMMANDS = ("slurmctld", "slurmd", "sbatch", "munged")
NODES = ("n1", "n2")
# Seconds until a daemon has started, or a job has started or ended, on a busy machine.
PATIENCE = 900.0

# Each node has one core and 4 GiB. Jobs are requeued by default (JobRequeue=1), but not on all
# clusters. A requeued job waits until its credential expires, which takes 120 s by default. Without
# cgroups, slurmd itself measures the memory of jobs, once a second. A node that does not answer is
# DOWN after 60 s (default: 300 s).
CONFIG = """
ClusterName=kinopoisk
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmUser=root
SlurmdUser=root
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobRequeue=0
SlurmdTimeout=60
ReturnToService=0
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=1 RealMemory=4096
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=1 RealMemory=4096
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def find_obstacle() -> str:
    """Return why there can be no cluster here; "" if there can be one."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        return f"needs Debian's slurmctld, slurmd, slurm-client and munge: no {missing[0]}"
    return "" if os.geteuid() == 0 else "needs root, which starts the daemons"


class Cluster:
    """A cluster that runs from `start` to `stop`, with all files and sockets in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.conf = folder, str(folder / "slurm.conf")
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all daemons, and wait until jobs can run."""
        ports = dict(zip(("port", *NODES), _find_free_ports(3), strict=True))
        text = CONFIG.format(folder=self.folder, host=socket.gethostname(), **ports)
        Path(self.conf).write_text(text)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        # munge would refuse a folder that other users cannot enter, such as pytest's.
        files = [
            f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "log", "pid", "seed")
        ]
        socket_file = self.folder / "munge.socket"
        options = ["--foreground", "--force", "--num-threads=10", f"--socket={socket_file}"]
        self._start("munged", *options, *files)
        wait_for(socket_file.exists)
        (self.folder / "state").mkdir()
        self._start("slurmctld", "-D", "-i")
        for node in NODES:
            self.start_node(node)

    def stop(self) -> None:
        """Kill the daemons and all jobs, which have their own sessions but the same variable."""
        kill(lambda env: env.get("SLURM_CONF") == self.conf)
        for daemon in self._daemons:
            daemon.wait()

    def start_node(self, node: str) -> None:
        """Start the daemon of a node, and wait until jobs can run there."""
        (self.folder / node).mkdir(exist_ok=True)
        # Slurm sets this variable for jobs. Here, it also marks the processes that start them.
        self._start("slurmd", "-D", "-N", node, SLURMD_NODENAME=node)
        wait_for(lambda: self.query("sinfo", "-h", "-n", node, "-o", "%T") == "idle")

    def lose_node(self, node: str) -> None:
        """Kill all processes of a node at once, as if the machine had lost its power."""
        kill(lambda env: env.get("SLURM_CONF") == self.conf and env.get("SLURMD_NODENAME") == node)

    def _start(self, *command: str, **variables: str) -> None:
        with (self.folder / f"{command[0]}.out").open("a") as out:
            environment = self.environment() | variables
            self._daemons += [subprocess.Popen(command, stdout=out, stderr=out, env=environment)]

    def environment(self) -> dict[str, str]:
        """Return the variables with which commands of Slurm find this cluster."""
        return {**os.environ, "SLURM_CONF": self.conf}

    def query(self, *command: str) -> str:
        """Return the output of a command of Slurm."""
        return subprocess.check_output(command, text=True, env=self.environment()).strip()

    def list_jobs(self) -> dict[str, tuple[str, str]]:
        """Return {id: (state, node)} for each job, also for jobs that have ended."""
        found = self.query("squeue", "-a", "-r", "-h", "--states=all", "-o", "%i|%T|%N")
        rows = (line.split("|") for line in found.splitlines())
        return {job: (state, node) for job, state, node in rows}


def wait_for(found: Callable[[], object]) -> None:
    """Wait until a condition is true; fail after PATIENCE seconds."""
    end = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def kill(chosen: Callable[[dict[str, str]], bool]) -> None:
    """Kill the processes with certain environment variables, none of which notices it."""
    # The second search finds what was started during the first one.
    while found := _find_processes(chosen):
        for signalled in (psutil.Process.suspend, psutil.Process.kill):
            for process in found:
                with suppress(psutil.Error):
                    signalled(process)
        time.sleep(0.1)


def _find_processes(chosen: Callable[[dict[str, str]], bool]) -> set[psutil.Process]:
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if chosen(process.environ()):
                # slurmstepd overwrites its variables. It is the parent of the processes of a job.
                parent = process.parent()
                is_step = parent is not None and parent.name() == "slurmstepd"
                found |= {process, parent} if is_step else {process}
    return found


def _find_free_ports(count: int) -> list[int]:
    with ExitStack() as open_sockets:
        found = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]
