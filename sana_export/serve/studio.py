"""One painter and one queue: jobs wait their turn, are painted one at a time, and can be called off at any moment."""

import logging
import math
import threading
import time
from collections import deque
from pathlib import Path

from sana_runtime.progress import StepEvent
from sana_runtime.session import Interrupted

from sana_export.serve.jobs import Finished, Job, State
from sana_export.serve.limits import Limits
from sana_export.serve.metrics import Metrics
from sana_export.serve.orders import Order
from sana_export.serve.pace import Pace
from sana_export.serve.refusals import Refusal, refusal_of
from sana_export.serve.shelf import Shelf

__all__ = ["Studio"]

log = logging.getLogger("sana_export.serve")


class Studio:
    """Paints what is submitted, in the order in which it came. Safe to call from any thread."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.metrics = metrics
        self._limits = limits
        self._shelf = Shelf(limits)
        self._pace = Pace()
        self._queue: deque[Job] = deque()
        self._current: Job | None = None
        self._open = True
        self._hurried = threading.Event()
        self._change = threading.Condition(threading.RLock())
        self._thread = threading.Thread(target=self._work, name="painter", daemon=True)
        self._thread.start()

    def submit(self, order: Order) -> Job:
        """A job for the order; a Refusal when the queue is full or the server is stopping."""
        with self._change:
            if not self._open:
                raise _stopping()
            if len(self._queue) >= self._limits.queue:
                wait = math.ceil(self._until_free() or 5)
                message = f"{len(self._queue)} jobs are waiting, no more are taken; try again in {wait} s"
                raise Refusal(429, "queue_full", message, headers={"Retry-After": str(wait)})
            job = Job(order)
            self._shelf.put(job)
            self._queue.append(job)
            self._change.notify()
            return job

    def find(self, job_id: str) -> Job:
        """The job called `job_id`."""
        with self._change:
            return self._shelf.find(job_id)

    def cancel(self, job: Job) -> bool:
        """Call a job off, within a step; False when it is over already."""
        with self._change:
            if job.state.over:
                return False
            job.cancelled = True
            if job is self._current:
                job.order.model.pipeline.cancel()
            else:
                self._queue.remove(job)
                self._finish(job, State.CANCELLED)
            return True

    def forget(self, job: Job) -> None:
        """Call a job off and keep nothing of it: its client has left."""
        with self._change:
            self.cancel(job)
            self._shelf.drop(job)

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._queue)

    @property
    def painting(self) -> bool:
        """Whether a picture is under way."""
        return self._current is not None

    def position(self, job: Job) -> int | None:
        """Jobs that come first, the one under way included; 0 for that one, None when it is over."""
        with self._change:
            if job is self._current:
                return 0
            ahead = 1 if self._current is not None else 0
            return self._queue.index(job) + ahead if job in self._queue else None

    def seconds_left(self, job: Job) -> float | None:
        """Seconds until the job is over, judged by those before it; None while nothing is known."""
        with self._change:
            if job.state.over:
                return 0.0
            ahead = self._queue if job is not self._current else ()
            parts = [self._left(self._current)] if self._current is not None else []
            for waiting in ahead:
                parts.append(self._left(waiting))
                if waiting is job:
                    break
            known = [part for part in parts if part is not None]
            return sum(known) if len(known) == len(parts) else None

    def drain(self) -> None:
        """Take no more jobs and call off those that wait; the one under way goes on."""
        with self._change:
            self._open = False
            while self._queue:
                job = self._queue.popleft()
                job.refusal = _stopping()
                self._finish(job, State.FAILED)
            self._change.notify()

    def hurry(self) -> None:
        """Let `close` wait no longer."""
        self._hurried.set()

    def close(self, patience: float) -> None:
        """Stop: the job under way has some seconds to be finished, then it is called off."""
        self.drain()
        end = time.monotonic() + patience
        while self._thread.is_alive():
            with self._change:
                if self._current is not None and (self._hurried.is_set() or time.monotonic() >= end):
                    self._current.refusal = _stopping()
                    self.cancel(self._current)
            self._thread.join(0.05)

    def rescue(self, folder: Path) -> list[Path]:
        """Write every finished picture that nobody fetched to `folder`."""
        with self._change:
            return self._shelf.rescue(folder)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._paint(job)
                outcome = State.CANCELLED if job.cancelled and len(job.pictures) < job.order.count else State.DONE
            except Interrupted:
                outcome = State.CANCELLED
            except Exception as error:
                job.refusal, outcome = refusal_of(error), State.FAILED
                if job.refusal.status >= 500:
                    log.error("painting failed: %s", error, exc_info=error if job.refusal.code == "internal" else None)
            with self._change:
                self._current = None
                self._finish(job, outcome)

    def _next(self) -> Job | None:
        """The next job, when there is one; None when the studio has closed."""
        with self._change:
            while self._open and not self._queue:
                self._change.wait()
            if not self._queue:
                return None
            self._current = self._queue.popleft()
            self._current.state = State.PAINTING
            self._current.began = time.monotonic()
            self._current.changed()
            for job in self._queue:
                job.changed()
            return self._current

    def _paint(self, job: Job) -> None:
        order = job.order

        def on_step(event: StepEvent) -> bool:
            job.event = event
            job.changed()
            return job.cancelled

        for index in range(order.count):
            if job.cancelled:
                return
            job.event, job.began = None, time.monotonic()
            picture = order.paint(index, on_step)
            seconds = time.monotonic() - job.began
            job.pictures.append(Finished(picture.png(), order.seed + index, round(seconds, 3)))
            job.changed()
            self._pace.learn(order.work, seconds)
            self.metrics.painted(order.model.name, order.steps, seconds)
            height, width = order.size
            log.info("painted %dx%d in %.1f s (%d steps, %s)", width, height, seconds, order.steps, order.model.name)

    def _finish(self, job: Job, state: State) -> None:
        job.ended, job.state, job.event = time.time(), state, None
        self.metrics.ended(state.value)
        self._shelf.tidy()
        job.changed()

    def _left(self, job: Job) -> float | None:
        """Seconds that the job still takes, once it is its turn."""
        work = job.order.work
        if job is not self._current:
            return self._pace.expect(work * job.order.count)
        left = self._pace.left(work, job.event, time.monotonic() - job.began)
        more = job.order.count - len(job.pictures) - 1
        if more <= 0 or left is None:
            return left
        rest = self._pace.expect(work * more)
        return None if rest is None else left + rest

    def _until_free(self) -> float | None:
        """Seconds until the queue has room."""
        return self._left(self._current) if self._current is not None else None


def _stopping() -> Refusal:
    message = "the server is stopping; send the job again when it is back"
    return Refusal(503, "stopping", message, headers={"Retry-After": "10"})
