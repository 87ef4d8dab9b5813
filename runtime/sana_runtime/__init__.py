"""The light runtime: bundle, sessions, solvers and pipeline, with no PyTorch anywhere."""

from typing import TYPE_CHECKING, Any

from sana_runtime.errors import SanaError

if TYPE_CHECKING:
    from sana_runtime.pipeline import Pipeline

__all__ = ["Pipeline", "SanaError"]


def __getattr__(name: str) -> Any:
    """Load the pipeline when it is asked for: the errors alone are all that some callers need."""
    if name == "Pipeline":
        from sana_runtime.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
