"""What a server gives to those who ask, and where it stops."""

from dataclasses import dataclass

__all__ = ["LARGEST_SEED", "Limits"]

LARGEST_SEED = 2**53 - 1  # the largest whole number that every JSON reader keeps exact


@dataclass(frozen=True)
class Limits:
    """Every limit of the server, as /v1/capabilities shows them."""

    queue: int = 16  # jobs that may wait
    steps: int = 100
    pictures: int = 4  # of one job
    guidance: float = 30.0
    body_bytes: int = 64 << 10
    header_bytes: int = 16 << 10
    patience_seconds: float = 10.0  # for a request's headers, and again for its body
    reading_seconds: float = 30.0  # for a client to read more of its answer
    connections: int = 512
    kept_bytes: int = 256 << 20  # of finished pictures
    kept_jobs: int = 200
    kept_seconds: float = 3600.0
    grace_seconds: float = 30.0  # for the picture under way when the server is told to stop
