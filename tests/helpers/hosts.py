"""Make several hosts of this machine: network namespaces that a switch joins.

The hosts share the disk, like the machines of a cluster with a shared folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from places import HELPERS

# A network for tests only: it exists in the namespaces, and not on this machine.
NETWORK = "10.213.77"
# How often a packet is sent again: 6 times take about 25 seconds.
RETRIES, RETRIES_KEY = 6, "net/ipv4/tcp_retries2"


class Host:
    """A network namespace with one address, and a port of the switch.

    Args:
        number: the number of the host, from 1.
        switch: the namespace of the switch.
    """

    def __init__(self, number: int, switch: str) -> None:
        self.name, self.address = f"{switch}-{number}", f"{NETWORK}.{number}"
        self._switch, self._port = switch, f"port{number}"
        ip("link", "add", "eth0", "netns", self.name, "type", "veth",
           "peer", "name", self._port, "netns", switch)  # fmt: skip
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.name, "link", "set", device, "up")
        ip("-n", switch, "link", "set", self._port, "master", "switch", "up")
        # By default, the kernel gives up a connection to a lost host only after 15 minutes.
        ip("netns", "exec", self.name, "sh", "-c", f"echo {RETRIES} > /proc/sys/{RETRIES_KEY}")

    def start(
        self, here: Path, *command: object, more: Mapping[str, str] = {}, user: str = "root"
    ) -> subprocess.Popen[bytes]:
        """Start a command in a folder; its output is appended to `<name of the host>.txt`."""
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path]),
               "KINOPOISK_FT_CACHE": str(here / "cache")}  # fmt: skip
        words = ["ip", "netns", "exec", self.name, "setpriv", f"--reuid={user}", *map(str, command)]
        with self.output(here).open("ab") as output:
            return subprocess.Popen(
                words, cwd=here, env={**os.environ, **own, **more}, stdout=output, stderr=output
            )

    def output(self, here: Path) -> Path:
        """Return the file with the output of the commands that were started in a folder."""
        return here / f"{self.name}.txt"

    def plug(self, is_up: bool) -> None:
        """Connect or disconnect the cable between this host and the switch."""
        ip("-n", self._switch, "link", "set", self._port, "up" if is_up else "down")

    def kill(self, part: str = "") -> None:
        """Kill all processes of this host whose command contains `part`, and their new children."""
        while found := self.processes(part):
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.05)

    def processes(self, part: str = "") -> list[psutil.Process]:
        """Return the processes of this host whose command contains `part`."""
        found = []
        for word in ip("netns", "pids", self.name).split():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(word))
                if part in " ".join(process.cmdline()):
                    found.append(process)
        return found


@contextmanager
def join_hosts(count: int) -> Iterator[list[Host]]:
    """Make hosts that reach each other; skip the test where this is not possible."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    switch = f"kft{os.getpid()}"
    with ExitStack() as stack:
        names = [switch, *(f"{switch}-{number}" for number in range(1, count + 1))]
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr}")
            stack.callback(ip, "netns", "delete", name)
        ip("-n", switch, "link", "add", "switch", "type", "bridge")
        ip("-n", switch, "link", "set", "switch", "up")
        hosts = [Host(number, switch) for number in range(1, count + 1)]
        for host in hosts:
            stack.callback(host.kill)
        yield hosts


def ip(*words: str) -> str:
    """Run iproute2, and return its output."""
    done = subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
    return done.stdout


def wait_until(condition: Callable[[], object], seconds: float, *outputs: Path) -> None:
    """Wait for a condition; fail with the end of the outputs if it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        texts = [path.read_text()[-3000:] for path in outputs if path.exists()]
        assert time.monotonic() < end, "\n".join(texts)
        time.sleep(0.1)
