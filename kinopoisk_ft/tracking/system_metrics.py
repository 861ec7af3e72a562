"""Record the load of the machine during a run with MLflow's own monitors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

# MLflow's UI shows metrics with this prefix on the tab "System metrics".
PREFIX = "system/"
# Seconds between two samples, as in MLflow by default.
INTERVAL = 10.0


class SystemMonitor:
    """A background thread that samples CPU, memory, disk, network and GPU.

    Args:
        record: function of ({metric name: value}, step) that records a sample.
        step: the step of the first sample; each sample increases it by 1.
    """

    def __init__(self, record: Callable[[dict[str, float], int], None], step: int) -> None:
        self._record, self._step = record, step
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        # MLflow raises these if the package nvidia-ml-py is missing, or if there is no GPU.
        with suppress(ImportError, RuntimeError):
            self._monitors.append(GPUMonitor())
        # The first value of psutil's CPU load has no meaning.
        self._monitors[0].collect_metrics()
        self._monitors[0].clear_metrics()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Record a last sample, and stop."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        interval = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or INTERVAL
        while True:
            # A run that is shorter than the interval still gets one sample.
            is_last = self._stopped.wait(interval)
            self._sample()
            if is_last:
                return

    def _sample(self) -> None:
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        self._record({f"{PREFIX}{name}": value for name, value in found.items()}, self._step)
        self._step += 1
