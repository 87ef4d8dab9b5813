"""What the server has done, in the text format that Prometheus reads."""

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Metrics", "resident_bytes"]

PAGE_BYTES = 4096
BUCKETS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # seconds


class Metrics:
    """Counters; safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._jobs: Counter[str] = Counter()
        self._pictures: Counter[str] = Counter()
        self._steps: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._buckets: Counter[tuple[str, float]] = Counter()

    def answered(self, route: str, status: int) -> None:
        """A request was answered."""
        with self._lock:
            self._requests[route, status] += 1

    def painted(self, model: str, steps: int, seconds: float) -> None:
        """A picture was finished."""
        with self._lock:
            self._pictures[model] += 1
            self._steps[model] += steps
            self._seconds[model] += seconds
            for bucket in BUCKETS:
                self._buckets[model, bucket] += seconds <= bucket

    def ended(self, outcome: str) -> None:
        """A job is over."""
        with self._lock:
            self._jobs[outcome] += 1

    def render(self, *, waiting: int, painting: bool) -> str:
        """The page that Prometheus fetches."""
        with self._lock:
            lines = [
                *_family("requests_total", "counter", "Requests answered.", self._request_samples()),
                *_family("jobs_total", "counter", "Jobs that are over.", _by("outcome", self._jobs)),
                *_family("pictures_total", "counter", "Pictures painted.", _by("model", self._pictures)),
                *_family("steps_total", "counter", "Solver steps painted.", _by("model", self._steps)),
                *_family("picture_seconds", "histogram", "Seconds for one picture.", self._histogram()),
            ]
        lines += _family("queue_jobs", "gauge", "Jobs that wait.", [("", waiting)])
        lines += _family("painting", "gauge", "1 while a picture is under way.", [("", int(painting))])
        memory = resident_bytes()
        if memory is not None:
            lines += _family("resident_memory_bytes", "gauge", "Memory of the process.", [("", memory)])
        return "\n".join(lines) + "\n"

    def _request_samples(self) -> Iterable[tuple[str, float]]:
        for (route, status), count in sorted(self._requests.items()):
            yield f'{{route="{route}",status="{status}"}}', count

    def _histogram(self) -> Iterable[tuple[str, float]]:
        for model, count in sorted(self._pictures.items()):
            for bucket in BUCKETS:
                yield f'_bucket{{model="{model}",le="{bucket:g}"}}', self._buckets[model, bucket]
            yield f'_bucket{{model="{model}",le="+Inf"}}', count
            yield f'_sum{{model="{model}"}}', round(self._seconds[model], 3)
            yield f'_count{{model="{model}"}}', count


def resident_bytes() -> int | None:
    """Memory that this process holds; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


def _by(label: str, counts: Counter[str]) -> Iterable[tuple[str, float]]:
    return ((f'{{{label}="{name}"}}', count) for name, count in sorted(counts.items()))


def _family(name: str, kind: str, meaning: str, samples: Iterable[tuple[str, float]]) -> list[str]:
    full = f"sana_export_{name}"
    return [
        f"# HELP {full} {meaning}",
        f"# TYPE {full} {kind}",
        *(f"{full}{label} {value}" for label, value in samples),
    ]
