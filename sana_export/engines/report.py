"""What came of building engines, and what is inside one, for people and for programs."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sana_runtime.engine_cache import ALL_SIZES, EngineCache
from sana_runtime.errors import UsageError

from sana_export.engines.bundle import EngineOutcome
from sana_export.plan_reader import Plan, PlanOperation, read_plan

__all__ = ["describe_engine", "describe_outcomes", "render_engine", "render_outcomes"]

KINDS = {  # what the plan's words mean
    "fully_connected": "product",
    "runtime_fusion": "fused product",
    "corrltn": "convolution",
    "custom_layer": "plugin",
    "function": "compiled kernel",
}


def describe_outcomes(outcomes: Sequence[EngineOutcome]) -> list[dict[str, Any]]:
    """One entry for each engine."""
    return [
        {
            "part": outcome.key.part,
            "capabilities": list(outcome.key.capabilities),
            "precision": outcome.key.precision,
            "plugin": outcome.key.plugin,
            "sizes": outcome.key.sizes,
            "streams": outcome.key.streams,
            "fused_mix_ffn": outcome.key.fused_mix_ffn,
            "engine": str(outcome.path) if outcome.path else None,
            "bytes": outcome.path.stat().st_size if outcome.path else 0,
            "seconds": round(outcome.built.seconds, 1) if outcome.built else None,
            "peak_memory": outcome.built.peak_memory if outcome.built else None,
            "refusal": outcome.refusal,
        }
        for outcome in outcomes
    ]


def render_outcomes(described: Sequence[dict[str, Any]]) -> str:
    """A line for each engine."""
    return "\n".join(_outcome_line(entry) for entry in described)


def _outcome_line(entry: dict[str, Any]) -> str:
    if entry["refusal"]:
        return f"not built: {entry['refusal']}"
    capabilities = ", ".join(f"{one / 10}" for one in entry["capabilities"])
    form = ", attention in our kernels" if entry["plugin"] else ""
    form += ", and the middle of the Mix-FFN" if entry["fused_mix_ffn"] else ""
    form += f", sizes {entry['sizes']}" if entry["sizes"] != ALL_SIZES else ""
    form += ", weights streamed" if entry["streams"] else ""
    head = f"{entry['part']:<14}{entry['precision']} for {capabilities}{form}: {entry['bytes'] / 1e6:.1f} MB"
    if entry["seconds"] is None:
        return f"{head}, was there already"
    return f"{head}, {entry['seconds']:.0f} s, {entry['peak_memory'] / 1e9:.2f} GB of memory"


def describe_engine(path: Path) -> dict[str, Any]:
    """Everything that `inspect --engine` shows; nothing in the file is run."""
    try:
        engine = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); `sana-export cache ls` lists engines") from error
    plan = read_plan(engine)
    if plan is None:
        raise UsageError(f"{path} is no engine of TensorRT-RTX 1.7; `sana-export cache ls` lists engines")
    return {
        "engine": str(path),
        "bytes": len(engine),
        "built_from": _origin(path),
        "targets": list(plan.targets),
        "tf32": plan.tf32,
        "kernels": len(plan.operations),
        "kinds": dict(Counter(KINDS.get(one.kind, one.kind) for one in plan.operations).most_common()),
        "products": dict(Counter(_types(one) for one in plan.products).most_common()),
        "activation_bytes": plan.activations,
        "constant_bytes": plan.constants,
        "operations": [_operation(one, plan) for one in plan.operations],
    }


def _origin(path: Path) -> dict[str, Any] | None:
    """What an entry of the cache says of itself."""
    kept = [entry for entry in EngineCache(path.parent).entries() if entry.path == path]
    return kept[0].key.to_dict() if kept else None


def _operation(one: PlanOperation, plan: Plan) -> dict[str, Any]:
    """One kernel; of a fusion also the products inside, which bear the names of its layers."""
    inside = [step for step in plan.products if step not in plan.operations and set(step.layers) & set(one.layers)]
    return {
        "kind": KINDS.get(one.kind, one.kind),
        "name": one.name,
        "types": _types(one),
        "products": [_types(step) for step in inside] if one.kind == "runtime_fusion" else [],
        "layers": list(one.layers),
    }


def _types(one: PlanOperation) -> str:
    factors = one.operands[:2] if one.kind == "fully_connected" else dict.fromkeys(one.operands)
    return f"{' x '.join(factors)} -> {', '.join(dict.fromkeys(one.results))}"


def render_engine(described: dict[str, Any]) -> str:
    """The description as a page of text."""
    lines = [
        f"{described['engine']}: {described['bytes'] / 1e6:.1f} MB for {', '.join(described['targets'])}",
        f"memory   {described['activation_bytes'] / 1e6:.1f} MB for activations at the largest shape, "
        f"{described['constant_bytes'] / 1e6:.1f} MB for weights",
        f"kernels  {described['kernels']}: " + _counts(described["kinds"]),
        f"products {_counts(described['products'])}",
        f"tf32     {'allowed: fp32 products may round to 10 bits' if described['tf32'] else 'off'}",
        "",
        *(_operation_line(entry) for entry in described["operations"]),
    ]
    return "\n".join(lines)


def _counts(counted: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counted.items())


def _operation_line(entry: dict[str, Any]) -> str:
    inside = f" ({', '.join(entry['products'])})" if entry["products"] else ""
    return f"{entry['kind']:<16}{entry['types']}{inside}  {' + '.join(entry['layers']) or entry['name']}"
