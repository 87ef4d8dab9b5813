"""How linear attention's sum over tokens is cut: arithmetic that kernels, plugins and hosts without Triton share."""

__all__ = ["ceil_div", "most_splits", "split_tokens"]

MOST_SPLITS = 8
SPLIT_BLOCK = 128


def ceil_div(a: int, b: int) -> int:
    """`a / b` rounded up; also for the symbolic sizes of a traced graph."""
    return -(-a // b)


def split_tokens(tokens: int) -> tuple[int, int]:
    """How many tokens each split sums, and how many splits there are: a function of the size alone."""
    chunk = SPLIT_BLOCK * ceil_div(ceil_div(tokens, SPLIT_BLOCK), MOST_SPLITS)
    return chunk, ceil_div(tokens, chunk)


def most_splits(tokens: int) -> int:
    """The most splits that any number of tokens up to `tokens` has: 1024 tokens have more splits than 1025."""
    return min(MOST_SPLITS, ceil_div(tokens, SPLIT_BLOCK))
