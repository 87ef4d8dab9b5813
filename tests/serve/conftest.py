"""A server of its own for whoever asks, on a free port, painting from a small bundle."""

import importlib.util
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import onnx_ir as ir
import pytest
from sana_calibration.quantise import quantise
from sana_runtime.bundle import open_bundle, seal

from sana_export.saving import save_graph
from sana_export.serve.limits import Limits
from sana_export.serve.server import Options, Server, open_server

# The bundle that the tests of the exporter build, so that nobody builds it twice. To see real pictures on the page,
# name a bundle in SANA_TEST_BUNDLE.
NAMED = os.environ.get("SANA_TEST_BUNDLE")
if not NAMED:
    SPEC = importlib.util.spec_from_file_location("exporter_fixtures", Path(__file__).parents[1] / "export/conftest.py")
    EXPORTER = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(EXPORTER)
    built = EXPORTER.built

SCHEME = "int8-channel-token"
LONG = {"prompt": "a red circle", "steps": 1000, "size": "128x128", "n": 4}  # takes longer than any test waits


@pytest.fixture(scope="session")
def bundle(request: pytest.FixtureRequest) -> Path:
    """A small bundle."""
    return Path(NAMED) if NAMED else request.getfixturevalue("built")("sana").path


@pytest.fixture(scope="module")
def int8_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with its wide products plainly rounded: not judged, but INT8 in truth."""
    manifest = open_bundle(bundle).manifest
    if manifest.precision == "int8":
        pytest.skip("the bundle that was named is INT8 itself")
    folder = tmp_path_factory.mktemp("int8") / "bundle"
    shutil.copytree(bundle, folder)
    model = ir.load(bundle / "transformer.onnx")
    quantise(model)
    save_graph(model, folder / "transformer.onnx")
    parts = {**manifest.parts, "transformer": replace(manifest.parts["transformer"], precision="int8", scheme=SCHEME)}
    return seal(folder, replace(manifest, precision="int8", parts=parts)).path


@dataclass
class Running:
    """A server at work, and a client for it."""

    server: Server
    thread: threading.Thread
    client: httpx.Client

    @property
    def url(self) -> str:
        return self.server.url

    def get(self, path: str, **options) -> httpx.Response:
        return self.client.get(path, **options)

    def post(self, path: str, **options) -> httpx.Response:
        return self.client.post(path, **options)

    def begin(self, **order) -> str:
        """Address of a new job."""
        answer = self.post("/v1/jobs", json={"prompt": "a star", "steps": 2, **order})
        assert answer.status_code == 202, answer.text
        return answer.headers["location"]

    def wait(self, job: str, *states: str) -> dict:
        """What the job says once it is in one of these states."""
        with self.client.stream("GET", f"{job}/events") as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    said = httpx.Response(200, content=line[6:]).json()
                    if said["status"] in states:
                        return said
        raise AssertionError(f"the job ended as {said['status']}, never {states}")

    def quiet(self) -> None:
        """Call off whatever is under way, and wait until nothing is."""
        for job in list(self.server.studio._shelf._jobs):
            self.client.delete(f"/v1/jobs/{job}")
        while self.get("/healthz").json()["painting"]:
            pass

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.client.close()


def start(bundles: list[Path], **options) -> Running:
    options.setdefault("limits", Limits(steps=1000, queue=3, grace_seconds=0.5))
    server = open_server(bundles, Options(port=0, **options))
    ready = threading.Event()
    thread = threading.Thread(target=server.listen, args=(ready.set,))
    thread.start()
    assert ready.wait(30)
    return Running(server, thread, httpx.Client(base_url=server.url, timeout=60))


@pytest.fixture(scope="module")
def running(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for the tests of a module."""
    server = start([bundle], unfetched=tmp_path_factory.mktemp("unfetched"))
    yield server
    server.stop()


@pytest.fixture
def serve(bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """A function that starts a server with more bundles and options of its own; the test may stop it, too."""
    begun: list[Running] = []

    def begin(*others: Path, **options) -> Running:
        begun.append(start([bundle, *others], **{"unfetched": tmp_path / "unfetched", **options}))
        return begun[-1]

    yield begin
    for each in begun:
        if each.thread.is_alive():
            each.stop()


@pytest.fixture
def long() -> dict:
    """An order that is never finished while a test looks on."""
    return dict(LONG)
