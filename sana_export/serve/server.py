"""Listen, answer, and stop without losing a picture: the one door to uvicorn."""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import platformdirs
import uvicorn
from sana_runtime.errors import UsageError

from sana_export.serve.app import make_app
from sana_export.serve.counter import Counter
from sana_export.serve.entrance import Entrance, is_loopback
from sana_export.serve.limits import Limits
from sana_export.serve.metrics import Metrics
from sana_export.serve.models import open_models
from sana_export.serve.protocol import LimitedProtocol
from sana_export.serve.studio import Studio

__all__ = ["Options", "Server", "open_server"]

LEAST_KEY = 12  # characters


@dataclass(frozen=True)
class Options:
    """How a server is to run."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    key: str | None = None
    names: tuple[str, ...] = ()  # by which the server is called besides, in Host headers
    device: str = "auto"
    limits: Limits = field(default_factory=Limits)
    unfetched: Path | None = None  # where pictures go that nobody fetched before the server stopped

    def check(self) -> None:
        """UsageError for what would be dangerous or cannot work."""
        if self.key is not None and (len(self.key) < LEAST_KEY or not self.key.isascii() or not self.key.isprintable()):
            raise UsageError(f"the API key is not {LEAST_KEY} or more plain characters; choose a longer one")
        if not is_loopback(self.host) and self.key is None:
            raise UsageError(
                f"{self.host}: others could reach the server without a key; set SANA_EXPORT_API_KEY, or use 127.0.0.1"
            )


class Server(uvicorn.Server):
    """One server; `run()` returns when it was told to stop and everything is put away."""

    def __init__(self, counter: Counter, options: Options, listener: socket.socket) -> None:
        entrance = Entrance(options.host, options.key, tuple(name.lower() for name in options.names))
        config = uvicorn.Config(
            make_app(counter, entrance),
            http=_protocol(options.limits),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.CRITICAL,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=options.limits.header_bytes,
            timeout_keep_alive=int(options.limits.patience_seconds),
            timeout_graceful_shutdown=int(options.limits.grace_seconds) + 10,
        )
        super().__init__(config)
        self.studio = counter.studio
        self._options = options
        self._listener = listener
        self.rescued: list[Path] = []

    @property
    def url(self) -> str:
        """Where the server listens."""
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def listen(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Answer until told to stop; `on_ready` is called when the first request may come."""
        self._on_ready = on_ready
        self.run([self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the picture under way or call it off, answer those who wait for it, keep what nobody fetched."""
        closing = asyncio.create_task(asyncio.to_thread(self.studio.close, self._options.limits.grace_seconds))
        await super().shutdown(sockets)
        await closing
        folder = self._options.unfetched or Path(platformdirs.user_data_dir("sana-export")) / "unfetched"
        self.rescued = self.studio.rescue(folder)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: stop in good order; a second one: stop now."""
        if self.should_exit:
            self.force_exit = True
            self.studio.hurry()
        self.should_exit = True


def open_server(bundles: Sequence[Path], options: Options) -> Server:
    """Open the bundles and a port; nothing is answered yet."""
    options.check()
    listener = _bind(options.host, options.port)
    try:
        models = open_models(bundles, options.device)
    except BaseException:
        listener.close()
        raise
    return Server(Counter(models, options.limits, Studio(options.limits, Metrics())), options, listener)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"{host}:{port} cannot be listened on ({reason}); choose another --port or --host") from error


def _protocol(limits: Limits) -> type[LimitedProtocol]:
    """The protocol with these limits; uvicorn makes one object for each connection."""
    return type("Protocol", (LimitedProtocol,), {"limits": limits})
