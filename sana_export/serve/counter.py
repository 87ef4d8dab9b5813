"""The counter at which orders are taken: the models on offer, the limits, and the studio behind it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sana_export.serve.jobs import Job
from sana_export.serve.limits import Limits
from sana_export.serve.models import Model
from sana_export.serve.orders import read_order
from sana_export.serve.studio import Studio

__all__ = ["Counter"]


@dataclass(frozen=True)
class Counter:
    """What the endpoints share."""

    models: Mapping[str, Model]
    limits: Limits
    studio: Studio

    def submit(self, fields: Mapping[str, Any]) -> Job:
        """A job for what the fields ask; a Refusal when they ask what cannot be."""
        return self.studio.submit(read_order(fields, self.models, self.limits))
