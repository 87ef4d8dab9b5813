"""Look through an ONNX file before any library opens it: known operators only, and only data that is declared.

A graph is data, but three things in it reach further: an operator of another domain can run code that a plug-in
registers, an EPContext node makes a provider load an engine file, and a tensor's external data names a file, an offset
and a length. All three are checked here, in the main graph, in nested graphs, in functions, in initializers and in
constant attributes, by walking the file's own bytes. No size that a file claims is believed: each is compared with what
the shape needs and with what the data file holds, before anything is allocated.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from sana_runtime.errors import BundleError
from sana_runtime.rules import shown
from sana_runtime.verdicts import Verdicts
from sana_runtime.wire import BYTES, VARINT, Damaged, Field, Walker, signed

__all__ = ["DOMAINS", "guard"]

DOMAINS = ("", "ai.onnx", "sana")
DEEPEST = 16  # graphs inside of graphs
FIELDS = 300_000  # the largest of our graphs have about 100,000
LARGEST = 64 << 20  # bytes of a graph; weights lie beside it
DIMENSIONS = 32

# Field numbers of onnx.proto, for the fields that can reach a node or a tensor. Each message's table says which fields
# are read, and how; a field that is not listed can hold neither.
MODEL = {7: "one graph", 8: "opset", 20: "training", 25: "function"}
GRAPH = {1: "node", 5: "tensor", 15: "sparse"}
NODE = {4: "op_type", 5: "attribute", 7: "domain"}
FUNCTION = {1: "name", 7: "node", 9: "opset", 10: "domain", 11: "attribute"}
ATTRIBUTE = {5: "one tensor", 6: "one graph", 10: "tensor", 11: "graph", 22: "one sparse", 23: "sparse"}
SPARSE = {1: "one values tensor", 2: "one indices tensor"}
TENSOR = {1: "dims", 2: "data_type", 13: "external", 14: "location"}
OPSET = {1: "domain"}
ENTRY = {1: "key", 2: "value"}

# Readers merge a message that is given twice and keep the last of a number; nothing here relies on knowing which.
ONCE = {"op_type", "domain", "name", "data_type", "location", "key", "value"}
ONCE |= {name for table in (MODEL, ATTRIBUTE, SPARSE) for name in table.values() if name.startswith("one ")}
NUMBERS = {"data_type", "location"}
EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
BITS |= {17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}  # by TensorProto.DataType


def guard(path: Path, data_files: Mapping[str, int], verdicts: Verdicts | None = None) -> None:
    """Raise BundleError if the graph at `path` is anything but data; `data_files` are those it may read, with sizes.

    With `verdicts`, bytes that have passed before are not looked through again.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise Damaged(f"it is larger than {LARGEST >> 20} MB; weights belong into a data file")
        content = path.read_bytes()
        if verdicts and verdicts.passed(content, data_files):
            return
        _Guard(data_files).model(memoryview(content))
        if verdicts:
            verdicts.remember(content, data_files)
    except Damaged as error:
        raise BundleError(f"{path.name}: {error}; build the bundle again") from None
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read ({error}); build the bundle again") from error


class _Guard:
    """One walk through one model."""

    def __init__(self, data_files: Mapping[str, int]) -> None:
        self.walker = Walker(FIELDS)
        self.data_files = data_files
        self.calls: dict[str, set[str]] = {}  # which functions each function calls

    def read(self, message: memoryview, table: Mapping[int, str]) -> list[tuple[str, Field]]:
        """The fields of a message that its table lists."""
        found = [(table[field.tag], field) for field in self.walker.fields(message, table)]
        names = [name for name, _ in found]
        for name, field in found:
            if field.kind != (VARINT if name in NUMBERS else BYTES) and name != "dims":
                raise Damaged(f"the field {name!r} is of the wrong kind")
            if name in ONCE and names.count(name) > 1:
                raise Damaged(f"the field {name!r} is given twice")
        return found

    def model(self, message: memoryview) -> None:
        fields = self.read(message, MODEL)
        if "one graph" not in dict(fields):
            raise Damaged("it is not an ONNX model with one graph")
        for name, field in fields:
            if name == "training":
                raise Damaged("it carries training graphs")
            if name == "opset":
                self.opset(field.data)
            elif name == "function":
                self.function(field.data)
            else:
                self.graph(field.data, 0)
        self.refuse_cycles()

    def opset(self, message: memoryview) -> None:
        self.domain(_text(dict(self.read(message, OPSET)), "domain"))

    def domain(self, domain: str) -> None:
        if domain not in DOMAINS:
            raise Damaged(f"it uses the operator domain {shown(domain)}; known are {', '.join(map(repr, DOMAINS))}")

    def graph(self, message: memoryview, depth: int, caller: str = "") -> None:
        if depth > DEEPEST:
            raise Damaged(f"its graphs are nested more than {DEEPEST} deep")
        for name, field in self.read(message, GRAPH):
            if name == "node":
                self.node(field.data, depth, caller)
            elif name == "tensor":
                self.tensor(field.data)
            else:
                self.sparse(field.data)

    def node(self, message: memoryview, depth: int, caller: str) -> None:
        fields = self.read(message, NODE)
        named = dict(fields)
        op_type, domain = _text(named, "op_type"), _text(named, "domain")
        if op_type.lower() == "epcontext":
            raise Damaged("it has an EPContext node, which loads an engine")
        self.domain(domain)
        self.calls.setdefault(caller, set()).add(f"{domain}.{op_type}")
        for name, field in fields:
            if name == "attribute":
                self.attribute(field.data, depth, caller)
        if not (op_type.isascii() and op_type.isidentifier()):
            raise Damaged(f"it has a node whose operator is {shown(op_type)}, which is no operator's name")

    def function(self, message: memoryview) -> None:
        fields = self.read(message, FUNCTION)
        named = dict(fields)
        domain = _text(named, "domain")
        caller = f"{domain}.{_text(named, 'name')}"
        if domain != "sana":
            raise Damaged(f"it defines a function in the domain {shown(domain)}; only 'sana' may have any")
        if caller in self.calls:
            raise Damaged(f"it defines the function {shown(caller)} twice")
        self.calls[caller] = set()
        for name, field in fields:
            if name == "opset":
                self.opset(field.data)
            elif name == "node":
                self.node(field.data, 0, caller)
            elif name == "attribute":
                self.attribute(field.data, 0, caller)

    def attribute(self, message: memoryview, depth: int, caller: str) -> None:
        for name, field in self.read(message, ATTRIBUTE):
            if name.endswith("graph"):
                self.graph(field.data, depth + 1, caller)
            elif name.endswith("tensor"):
                self.tensor(field.data)
            else:
                self.sparse(field.data)

    def sparse(self, message: memoryview) -> None:
        for _, field in self.read(message, SPARSE):
            self.tensor(field.data)

    def tensor(self, message: memoryview) -> None:
        fields = self.read(message, TENSOR)
        named = dict(fields)
        dims = [signed(number) for name, field in fields if name == "dims" for number in self.dimension(field)]
        if any(size < 0 for size in dims) or len(dims) > DIMENSIONS:
            raise Damaged(f"a tensor has a negative dimension, or more than {DIMENSIONS}")
        entries = [self.entry(field.data) for name, field in fields if name == "external"]
        if entries or ("location" in named and named["location"].number):
            self.external(entries, math.prod(dims), named["data_type"].number if "data_type" in named else 0)
        elif math.prod(dims) > 8 * len(message):  # no type is smaller than a bit
            raise Damaged("a tensor claims more elements than it holds")

    def dimension(self, field: Field) -> list[int]:
        if field.kind == BYTES:
            return list(self.walker.varints(field.data))
        if field.kind != VARINT:
            raise Damaged("the field 'dims' is of the wrong kind")
        return [field.number]

    def entry(self, message: memoryview) -> tuple[str, str]:
        named = dict(self.read(message, ENTRY))
        return _text(named, "key"), _text(named, "value")

    def external(self, entries: list[tuple[str, str]], elements: int, data_type: int) -> None:
        values = dict(entries)
        if len(values) < len(entries) or not values.keys() <= EXTERNAL_KEYS:
            raise Damaged("a tensor's external data has keys that are unknown or given twice")
        location = values.get("location", "")
        if location not in self.data_files:
            raise Damaged(f"a tensor lies in {shown(location)}, which is not a declared data file")
        if data_type not in BITS:
            raise Damaged(f"a tensor of type {data_type} cannot lie in a file")
        needed = -(-elements * BITS[data_type] // 8)
        offset, length = _count(values.get("offset", "0")), _count(values.get("length", str(needed)))
        if length != needed:
            raise Damaged(f"a tensor that needs {shown(needed)} bytes claims {shown(length)} of {location}")
        if offset + length > self.data_files[location]:
            raise Damaged(f"a tensor reaches beyond the end of {location}")

    def refuse_cycles(self) -> None:
        """Functions that call each other in a ring would be expanded for ever."""
        calls = {caller: {name for name in called if name in self.calls} for caller, called in self.calls.items()}
        while calls:
            ends = {caller for caller, called in calls.items() if not called}
            if not ends:
                raise Damaged(f"its functions call themselves ({shown(min(calls))})")
            calls = {caller: called - ends for caller, called in calls.items() if caller not in ends}


def _text(named: Mapping[str, Field], name: str) -> str:
    try:
        return bytes(named[name].data).decode("utf-8") if name in named else ""
    except UnicodeDecodeError:
        raise Damaged(f"the field {name!r} is not text") from None


def _count(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise Damaged(f"a tensor's place in its file is {shown(digits)}, not a whole number")
    return int(digits)
