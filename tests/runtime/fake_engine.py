"""An engine library and a card's driver made of plain Python, for the logic between them: they prove nothing of a GPU.

The engine computes y = 2 x for float32 x of shape (batch, 4), batch 1 to 8, by reading and writing the card's memory.
"""

from types import SimpleNamespace

import numpy as np


class FakeDriver:
    """A card whose memory is a dictionary."""

    def __init__(self):
        self.memory, self.freed, self.events, self.capturing = {}, [], [], None
        self.on_wait = lambda: None

    def enter(self):
        self.events.append("enter")

    def allocate(self, size):
        address = 4096 * (len(self.memory) + len(self.freed) + 1)
        self.memory[address] = bytearray(size)
        return address

    def free(self, address):
        self.freed.append(self.memory.pop(address))

    def stream(self):
        return 7

    def upload(self, address, array, stream):
        assert stream == 7 and array.flags.c_contiguous
        self.memory[address][: array.nbytes] = array.tobytes()

    def download(self, array, address, stream):
        assert stream == 7
        array.reshape(-1).view(np.uint8)[:] = np.frombuffer(self.memory[address][: array.nbytes], np.uint8)

    def wait(self, stream):
        self.on_wait()

    def capture(self, work, stream):
        self.capturing = []
        work()
        self.graph, self.capturing = self.capturing, None
        self.events.append("capture")
        return 99

    def launch(self, graph, stream):
        assert graph == 99
        self.events.append("launch")
        for work in self.graph:
            work()

    def drop_graph(self, graph):
        self.events.append("drop graph")

    def drop_stream(self, stream):
        self.events.append("drop stream")

    def execute(self, work):
        """What a library puts into the stream: done at once, or recorded."""
        if self.capturing is None:
            self.events.append("execute")
            work()
        else:
            self.capturing.append(work)


class FakeContext:
    """The engine, ready."""

    def __init__(self, module):
        self.module, self.addresses, self.shape, self.fails = module, {}, None, False

    def set_input_shape(self, name, shape):
        self.shape = shape
        return name == "x" and shape[1:] == (4,) and 1 <= shape[0] <= 8

    def infer_shapes(self):
        return []

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        if self.fails:
            self.module.log.log(1, "an illegal address")
            return False
        shape, addresses, driver = self.shape, dict(self.addresses), self.module.driver
        driver.execute(lambda: compute(driver, addresses, shape))
        return True


def compute(driver, addresses, shape):
    count = int(np.prod(shape))
    x = np.frombuffer(driver.memory[addresses["x"]], np.float32)[:count]
    driver.memory[addresses["y"]][: 4 * count] = (2 * x).tobytes()


class FakeCompiled:
    """The library's cache of compiled kernels."""

    def __init__(self):
        self.content, self.given = b"compiled", None

    def deserialize(self, blob):
        self.given = blob
        return False  # as if from another driver: the library ignores it

    def serialize(self):
        return self.content


class FakeModule:
    """What `tensorrt_rtx` offers at run time; without `graphs` as little as `tensorrt`."""

    Severity = SimpleNamespace(ERROR=1)
    ILogger = type("ILogger", (), {"Severity": Severity, "__init__": lambda self: None})
    EngineValidity = SimpleNamespace(VALID=0, INVALID=2)
    EngineInvalidityDiagnostics = SimpleNamespace(
        VERSION_MISMATCH=1,
        UNSUPPORTED_CC=2,
        OLD_CUDA_DRIVER=4,
        OLD_CUDA_RUNTIME=8,
        INSUFFICIENT_GPU_MEMORY=16,
        MALFORMED_ENGINE=32,
        CUDA_ERROR=64,
    )
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole", DISABLED="none")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def __init__(self, driver, *, graphs=True, kinds=("FLOAT", "FLOAT"), weights=0, room=0):
        self.driver, self.validity, self.complaint, self.plan = driver, (0, 0), None, None
        self.weights, self.room, self.engine = weights, room, None  # bytes that may be streamed, and that fit
        self.kinds = dict(zip("xy", kinds, strict=True))
        self.compiled, self.context = FakeCompiled(), FakeContext(self)
        self.settings = SimpleNamespace()
        if graphs:
            self.settings.cuda_graph_strategy = self.settings.dynamic_shapes_kernel_specialization_strategy = None
            self.settings.create_runtime_cache = lambda: self.compiled
            self.settings.set_runtime_cache = lambda compiled: None

    def Runtime(self, log):  # noqa: N802
        self.log = log
        self.runtime = SimpleNamespace(
            get_engine_validity=lambda header: self.validity, deserialize_cuda_engine=self.deserialize
        )
        return self.runtime

    def deserialize(self, plan):
        self.plan = plan
        if self.complaint:
            self.log.log(1, self.complaint)
            return None
        self.engine = SimpleNamespace(
            streamable_weights_size=self.weights,
            weight_streaming_budget_v2=self.weights,
            get_weight_streaming_automatic_budget=lambda: self.room,
            num_io_tensors=2,
            get_tensor_name=lambda i: "xy"[i],
            get_tensor_mode=lambda name: SimpleNamespace(name="INPUT" if name == "x" else "OUTPUT"),
            get_tensor_dtype=lambda name: SimpleNamespace(name=self.kinds[name]),
            get_tensor_profile_shape=lambda name, profile: [(1, 4), (2, 4), (8, 4)],
            create_runtime_config=lambda: self.settings,
            create_execution_context=self.make_ready,
        )
        return self.engine

    def make_ready(self, settings):
        self.context.budget = self.engine.weight_streaming_budget_v2  # it counts when the engine is made ready
        return self.context
