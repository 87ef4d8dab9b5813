"""One job: an order, how far it is, and the pictures that are finished. The painter writes, any thread reads."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sana_runtime.progress import StepEvent

from sana_export.serve.orders import Order
from sana_export.serve.refusals import Refusal

__all__ = ["Finished", "Job", "State"]

HEARTBEAT_SECONDS = 1.0  # between two looks at a job that says nothing


class State(str, Enum):
    """Where a job stands."""

    QUEUED = "queued"
    PAINTING = "painting"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (State.QUEUED, State.PAINTING)


@dataclass(frozen=True)
class Finished:
    """One picture, as the PNG that clients fetch."""

    png: bytes
    seed: int
    seconds: float


@dataclass(eq=False)
class Job:
    """What became of an order."""

    order: Order
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: State = State.QUEUED
    created: float = field(default_factory=time.time)
    ended: float | None = None
    event: StepEvent | None = None  # the last of the picture under way
    began: float = 0.0  # monotonic, of the picture under way
    pictures: list[Finished] = field(default_factory=list)
    fetched: set[int] = field(default_factory=set)  # pictures that reached somebody
    cancelled: bool = False  # somebody wants no more of it
    refusal: Refusal | None = None
    watchers: set["Watcher"] = field(default_factory=set)

    @property
    def bytes(self) -> int:
        """Size of the finished pictures."""
        return sum(len(picture.png) for picture in self.pictures)

    def changed(self) -> None:
        """Wake everybody who watches; from any thread."""
        for watcher in tuple(self.watchers):
            watcher.wake()

    async def changes(self) -> AsyncIterator[None]:
        """Once at first, then at every change and every second, until the job is over; once more then."""
        with self._watched() as watcher:
            while not self.state.over:
                yield
                await watcher.wait(HEARTBEAT_SECONDS)
        yield

    async def over(self) -> None:
        """Return when the job is over."""
        async for _ in self.changes():
            pass

    def result(self, index: int) -> Finished:
        """Picture `index`; a Refusal says why it is not there."""
        if index < len(self.pictures):
            return self.pictures[index]
        if index >= self.order.count:
            message = f"picture {index}: this job has pictures 0 to {self.order.count - 1}"
            raise Refusal(404, "not_found", message, "index")
        if self.refusal is not None:
            raise self.refusal
        if self.state is State.CANCELLED:
            raise Refusal(409, "cancelled", "the job was cancelled before this picture was finished; send it again")
        raise Refusal(409, "not_finished", f"the picture is not finished (the job is {self.state.value}); ask again")

    def describe(self) -> dict[str, Any]:
        """What the job itself knows, for its client."""
        order = self.order
        event = self.event if self.state is State.PAINTING else None
        return {
            "id": self.id,
            "status": self.state.value,
            "model": order.model.name,
            "size": f"{order.size[1]}x{order.size[0]}",
            "steps": order.steps,
            "guidance": order.guidance,
            "solver": order.solver,
            "seed": order.seed,
            "n": order.count,
            "created": int(self.created),
            "stage": event.stage if event else None,
            "step": event.index if event else 0,
            "of": event.total if event else 0,
            "pictures": [{"index": i, "seed": p.seed, "seconds": p.seconds} for i, p in enumerate(self.pictures)],
            "error": self.refusal.body()["error"] if self.refusal else None,
        }

    @contextmanager
    def _watched(self) -> Iterator["Watcher"]:
        watcher = Watcher()
        self.watchers.add(watcher)
        try:
            yield watcher
        finally:
            self.watchers.discard(watcher)


class Watcher:
    """Wakes a coroutine from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def wake(self) -> None:
        """Let the coroutine go on."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, seconds: float) -> None:
        """Return when woken, or after some seconds."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except asyncio.TimeoutError:
            return
        self._event.clear()
