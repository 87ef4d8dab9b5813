"""Read what a compiled TensorRT-RTX engine really does: its operations, their types, what was fused, and the memory.

The compiler leaves its program in the engine as readable text: regions of memory, tensors with their types, then
operations with the names of the ONNX nodes they came from. Nothing documents it; it was read from engines of
TensorRT-RTX 1.7. The main program comes first, then a small one for each fusion that is compiled on the user's machine.
"""

import re
from dataclasses import dataclass
from functools import cached_property

__all__ = ["Plan", "PlanOperation", "PlanProduct", "products_in", "read_plan"]

TEXT = re.compile(rb"[\t\n\x20-\x7e]{16,}")  # shorter runs are weights that look like text
PROGRAM = re.compile(r"^header \{(?P<header>.*?)^main \{(?P<main>.*?)^(?:\}|shape_main)", re.DOTALL | re.MULTILINE)
REGION = re.compile(r"region = \{ name=(?P<name>\S+) size=(?P<size>\d+) (?P<rest>.*?)\}")
TENSOR = re.compile(r"(?:sub_)?tensor=\{ (?P<fields>.*?) type=(?P<type>\w+)")
NAME = re.compile(r'\bname="([^"]*)"')
OPERATION = re.compile(r"^ +(?P<kind>\w+)=\{ (?P<body>.*?)(?=^ +\w+=\{ |\Z)", re.DOTALL | re.MULTILINE)
CALLED = re.compile(r'\bname="?([^"\s]+)')
OPERANDS = re.compile(r"\b(?:input|input_args)=\{(.*?)\}", re.DOTALL)
RESULTS = re.compile(r"\b(?:output|output_args)=\{(.*?)\}", re.DOTALL)
LAYERS = re.compile(r'layers="(.*?)"', re.DOTALL)
LAYER = re.compile(r"\[ONNX Layer: (.*?)\]", re.DOTALL)
TARGETS = re.compile(r"accelerators=\{(.*?)\}")

PRODUCT = "fully_connected"
CONVOLUTION = "corrltn"
PLUGIN = "custom_layer"
# Arithmetic on shapes, done before a run; no kernel is launched for it.
NO_KERNEL = frozenset({"shape_call", "reshape", "cast", "memset", "assert"})


@dataclass(frozen=True)
class PlanOperation:
    """One operation of the plan."""

    kind: str  # function, runtime_fusion, fully_connected, corrltn, custom_layer, …
    name: str
    operands: tuple[str, ...]  # types, as the plan calls them: int8, half, float, …
    results: tuple[str, ...]
    layers: tuple[str, ...]  # ONNX nodes that it came from


@dataclass(frozen=True)
class PlanProduct:
    """One matrix product of the plan."""

    layers: tuple[str, ...]  # ONNX nodes that it came from
    operands: tuple[str, str]  # types, as the plan calls them: int8, half, float, …
    result: str


@dataclass(frozen=True)
class Plan:
    """The whole program."""

    targets: tuple[str, ...]  # such as sm89
    tf32: bool  # whether fp32 products may round their factors to 10 bits
    operations: tuple[PlanOperation, ...]  # of the main program: each is a kernel to launch
    fused: tuple[PlanOperation, ...]  # what the fusions among them do, step by step
    activations: int  # bytes of device memory for the largest shape
    constants: int

    @cached_property
    def products(self) -> tuple[PlanOperation, ...]:
        """Every matrix product, alone or inside a fusion."""
        return tuple(one for one in (*self.operations, *self.fused) if one.kind == PRODUCT)

    @cached_property
    def plugins(self) -> tuple[PlanOperation, ...]:
        """What plugins do."""
        return tuple(one for one in self.operations if one.kind == PLUGIN)


def read_plan(engine: bytes) -> Plan | None:
    """The program in `engine`; None when there is none to be read."""
    text = b"\n".join(TEXT.findall(engine)).decode("ascii")
    programs = [(found["header"], found["main"]) for found in PROGRAM.finditer(text)]
    mains = [program for program in programs if "tf32=" in program[0]]
    if not mains:
        return None
    types, headers = _types(text), "".join(header for header, _ in mains)
    memory = [(found["name"], int(found["size"]), found["rest"]) for found in REGION.finditer(headers)]
    on_device = [(name, size) for name, size, rest in memory if "place=accelerator" in rest]
    constants = sum(size for name, size in on_device if "consts" in name)
    return Plan(
        targets=tuple(dict.fromkeys(target for listed in TARGETS.findall(headers) for target in listed.split())),
        tf32="\n  tf32=1" in headers,
        operations=tuple(one for _, body in mains for one in _operations(body, types) if one.kind not in NO_KERNEL),
        fused=tuple(one for program in programs if program not in mains for one in _operations(program[1], types)),
        activations=sum(size for _, size in on_device) - constants,
        constants=constants,
    )


def products_in(engine: bytes) -> tuple[PlanProduct, ...]:
    """Every matrix product, once for each shape profile the plan has code for."""
    plan = read_plan(engine)
    found = plan.products if plan else ()
    return tuple(PlanProduct(one.layers, (one.operands[0], one.operands[1]), one.results[0]) for one in found)


def _types(text: str) -> dict[str, str]:
    return {name.group(1): found["type"] for found in TENSOR.finditer(text) if (name := NAME.search(found["fields"]))}


def _operations(body: str, types: dict[str, str]) -> tuple[PlanOperation, ...]:
    return tuple(_operation(found["kind"], found["body"], types) for found in OPERATION.finditer(body))


def _operation(kind: str, body: str, types: dict[str, str]) -> PlanOperation:
    called, layers = CALLED.search(body), LAYERS.search(body)
    return PlanOperation(
        kind=kind,
        name=called.group(1) if called else "",
        operands=_types_of(OPERANDS.search(body), types),
        results=_types_of(RESULTS.search(body), types),
        layers=tuple(LAYER.findall(layers.group(1))) if layers else (),
    )


def _types_of(listed: re.Match[str] | None, types: dict[str, str]) -> tuple[str, ...]:
    """Types of the tensors that are listed; sizes, which are listed with them, are left out."""
    names = re.findall(r'"([^"]*)"', listed.group(1)) if listed else []
    return tuple(kind for name in names if (kind := types.get(name, "unknown")) != "int64")
