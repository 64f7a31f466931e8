"""`Metric`: one family of numbers for Prometheus, and a collector that reads them when asked.

Nothing is counted in memory: each answer is read from the files that hold the truth, so that a
restart, or a process that was killed, leaves no stale number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

Family = CounterMetricFamily | GaugeMetricFamily


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A family of numbers.

    Attributes:
        name: By the conventions of Prometheus.
        help: What it is, with its unit.
        labels: Names of its labels.
        kind: ``counter`` where it only grows.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"

    def family(self) -> Family:
        """It without numbers."""
        kind = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        return kind(self.name, self.help, labels=self.labels)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One number.

    Attributes:
        metric: Its family.
        labels: Values of the labels, in their order.
        value: The number.
    """

    metric: Metric
    labels: tuple[str, ...] = ()
    value: float


class Readings(Collector):
    """Answers each scrape with what is so at that moment.

    Args:
        metrics: Every family.
        read: Reads the numbers.
    """

    def __init__(self, metrics: Iterable[Metric], *, read: Callable[[], Iterable[Sample]]) -> None:
        self._metrics = tuple(metrics)
        self._read = read
        self._lock = threading.Lock()

    def describe(self) -> Iterator[Family]:
        """The families, which the registry asks for before anything is read."""
        for metric in self._metrics:
            yield metric.family()

    def collect(self) -> Iterator[Family]:
        """The families with their numbers."""
        families = {metric: metric.family() for metric in self._metrics}
        with self._lock:
            samples = tuple(self._read())
        for sample in samples:
            families[sample.metric].add_metric(sample.labels, sample.value)
        yield from families.values()
