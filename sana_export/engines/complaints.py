"""Say in one sentence why an engine was not built, and what to do, from what the library logged."""

import re
from collections.abc import Sequence

from sana_runtime.errors import BackendError, MemoryLimitError, SanaError
from sana_runtime.publish import FULL

from sana_export.engines.job import EngineJob

__all__ = ["complaint", "death", "disk_trouble"]

TYPES = {"b16": "bf16", "fp8_e4m3": "fp8", "fp4_e2m1": "fp4", "fp8_ue8m0": "mxfp8"}
ELSEWHERE = "run this part with --device cpu"

# What the library logs, and what it means; the first that is found is told.
MEANINGS: tuple[tuple[str, str], ...] = (
    (
        r"FP32 GEMM is not supported",
        "compute capability 7.5 multiplies fp16 and int8 matrices only, and this graph has fp32 ones; "
        f"build the bundle at --precision fp16, or {ELSEWHERE}",
    ),
    (
        r"Cannot compile for target\(s\) (?P<targets>[\w, ]+?), because .*datatypes: (?P<types>[\w, ]+)",
        f"{{targets}} cannot compute in {{types}}; leave it out of --sm, choose another precision, or {ELSEWHERE}",
    ),
    (r"Plugin not found|PLUGIN_V3|createPlugin", "a plugin was refused; build with --no-plugin"),
    (
        r"UNSUPPORTED_NODE|No importer|not supported by the parser",
        f"the graph has an operation that {{library}} does not know ({{line}}); {ELSEWHERE}",
    ),
    (
        r"(?i)optimization profile|kMIN|kMAX|dimension",
        "its shapes do not fit the graph ({line}); build the bundle again",
    ),
    (
        r"(?i)cuda (driver|error|runtime)|cudaError|no cuda|CUDA_SUCCESS",
        "{library} asked for a GPU driver and found none that will do ({line}); update the driver, or build elsewhere",
    ),
    (r"(?i)failed to open|could not open|no such file", "its file cannot be read ({line}); run `sana-export verify`"),
)
NO_MEMORY = re.compile(r"(?i)out ?of ?memory|bad_alloc|could not allocate")


def complaint(job: EngineJob, errors: Sequence[str]) -> SanaError:
    """The error for a build that the library gave up."""
    text = "\n".join(errors)
    if NO_MEMORY.search(text):
        return MemoryLimitError(f"{_engine(job)}: the memory is full; close other programs and try again")
    for pattern, meaning in MEANINGS:
        found = re.search(pattern, text)
        if found:
            return BackendError(f"{_engine(job)}: {meaning.format(**_words(job, errors, found))}")
    return BackendError(f"{_engine(job)}: {job.library.label} refused it ({_line(errors)}); {ELSEWHERE}")


def death(job: EngineJob, code: int) -> SanaError:
    """The error for a build whose process ended without a word."""
    if code == -9:
        return MemoryLimitError(f"{_engine(job)}: the system stopped the build, which takes memory; close programs")
    remedy = "build with --no-plugin" if job.plugin else ELSEWHERE
    return BackendError(f"{_engine(job)}: {job.library.label} ended its process (exit code {code}); {remedy}")


def disk_trouble(job: EngineJob, number: int, message: str) -> SanaError:
    """The error for a file that could not be read or written, by the system's own number and words."""
    if number in FULL:
        return MemoryLimitError(f"{_engine(job)}: the disk is full; free some space, or run `sana-export cache clear`")
    return BackendError(f"{_engine(job)}: {' '.join(message.split())}; make it accessible, or build the bundle again")


def _engine(job: EngineJob) -> str:
    return f"{job.part} for compute capability {', '.join(f'{one / 10}' for one in job.capabilities)}"


def _words(job: EngineJob, errors: Sequence[str], found: re.Match[str]) -> dict[str, str]:
    named = found.groupdict()
    types = [TYPES.get(word, word) for word in re.findall(r"\w+", named.get("types", ""))]
    return {
        "library": job.library.label,
        "line": _line([line for line in errors if found.group(0) in line] or errors),
        "targets": named.get("targets", "").upper(),
        "types": ", ".join(dict.fromkeys(types)),
    }


def _line(errors: Sequence[str]) -> str:
    return " ".join(errors[0].split())[:200] if errors else "it logged nothing"
