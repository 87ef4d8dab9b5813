"""Jobs that are over, kept for a while so that their pictures can be fetched."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path

from sana_export.serve.jobs import Job
from sana_export.serve.limits import Limits
from sana_export.serve.refusals import Refusal

__all__ = ["Shelf"]

REMEMBERED = 1000  # ids of jobs whose pictures are gone


class Shelf:
    """Every job that is known, by id, oldest first."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._limits = limits
        self._clock = clock
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._gone: deque[str] = deque(maxlen=REMEMBERED)

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Remember a job, and forget those for which there is no room or time any more."""
        self._jobs[job.id] = job
        self.tidy()

    def find(self, job_id: str) -> Job:
        """The job called `job_id`; a Refusal says whether it was ever there."""
        self.tidy()
        if job_id in self._jobs:
            return self._jobs[job_id]
        if job_id in self._gone:
            raise Refusal(410, "expired", "the job and its pictures are no longer kept; send it again")
        raise Refusal(404, "not_found", "there is no such job; POST /v1/jobs makes one")

    def drop(self, job: Job) -> None:
        """Forget a job."""
        if self._jobs.pop(job.id, None) is not None:
            self._gone.append(job.id)

    def tidy(self) -> None:
        """Forget the oldest jobs that are over, until the limits are kept."""
        for job in [job for job in self._jobs.values() if job.state.over]:
            if self._has_room() and self._clock() - (job.ended or 0) < self._limits.kept_seconds:
                return
            self.drop(job)

    def rescue(self, folder: Path) -> list[Path]:
        """Write every finished picture that nobody fetched to `folder`."""
        lost = [(job, i) for job in self._jobs.values() for i in range(len(job.pictures)) if i not in job.fetched]
        if lost:
            folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for job, index in lost:
            path = folder / f"{job.id}-{index}.png"
            path.write_bytes(job.pictures[index].png)
            paths.append(path)
        return paths

    def _has_room(self) -> bool:
        jobs = self._jobs.values()
        return len(jobs) <= self._limits.kept_jobs and sum(job.bytes for job in jobs) <= self._limits.kept_bytes
