"""Measure nano: how often its pictures show what held-out prompts say, by guidance, solver, steps and instruction.

    python bench/nano_evaluate.py guidance|solvers|instruction|sheet [--each 100]

Every measurement is added to docs/measurements/nano.json, from which bench/nano_plots.py draws.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sana_reference.nano.evaluation import Question, Score, evaluate, questions, table
from sana_reference.nano.progress import save_grid
from sana_reference.pipeline import ReferencePipeline
from sana_runtime.prompt import PromptRules, PromptTokens
from sana_runtime.tokenizer import Tokenizer

RESULTS = Path(__file__).parents[1] / "docs" / "measurements" / "nano.json"
SHEET = Path(__file__).parents[1] / "docs" / "images" / "nano-sheet.png"
SIZE = (128, 128)
GUIDANCES = (1.0, 1.5, 2.0, 3.0, 4.5)
WALKS = {"flow-dpm": (4, 6, 8, 10, 14, 20), "flow-euler": (6, 10, 14, 20, 28, 50)}
EXACT = ("flow-dpm", 200)

Pixels = NDArray[np.uint8]


class WithoutInstruction(PromptRules):
    """The same prompts, with nothing before them."""

    def instruct(self, tokenizer: Tokenizer, prompt: str) -> PromptTokens:
        """Treat a prompt as a negative prompt is treated."""
        return self.plain(tokenizer, prompt)


def paint(pipeline: ReferencePipeline, prompts: Sequence[str], seeds: Sequence[int], **settings: Any) -> Pixels:
    """One picture for each prompt, from the noise of its own seed."""
    noise = np.stack([np.random.default_rng(seed).standard_normal((32, 4, 4), np.float32) for seed in seeds])
    return pipeline.generate(prompts, size=SIZE, latents=noise, **settings)


def measure(asked: list[Question], painter: Callable[[Sequence[str], Sequence[int]], Pixels]) -> dict[str, Any]:
    """The table of one setting: share and 95 % interval of every category."""
    start = time.perf_counter()
    scores = table(asked, evaluate(painter, asked))
    print(f"{time.perf_counter() - start:.0f} s")
    for name, score in scores.items():
        print(f"  {name:20} {show(score)}")
    return {name: {"right": score.right, "asked": score.asked} for name, score in scores.items()}


def show(score: Score) -> str:
    """A share and its interval, in per cent."""
    low, high = score.interval()
    return f"{100 * score.share:5.1f} %  ({100 * low:.1f} to {100 * high:.1f}, n = {score.asked})"


def guidance(pipeline: ReferencePipeline, asked: list[Question]) -> dict[str, Any]:
    """Scores at several strengths of guidance, 20 Flow-DPM steps."""
    results = {}
    for scale in GUIDANCES:
        print(f"guidance {scale}")
        results[str(scale)] = measure(asked, partial(paint, pipeline, guidance=scale))
    return results


def solvers(pipeline: ReferencePipeline, asked: list[Question]) -> dict[str, Any]:
    """Scores, and distance in grey levels from where 200 steps lead, by solver and steps."""
    asked = asked[:: max(len(asked) // 120, 1)]
    prompts, seeds = [question.prompt for question in asked], range(len(asked))
    exact = paint(pipeline, prompts, seeds, solver=EXACT[0], steps=EXACT[1]).astype(np.float32)
    results: dict[str, Any] = {}
    for solver, lengths in WALKS.items():
        for steps in lengths:
            pictures = paint(pipeline, prompts, seeds, solver=solver, steps=steps)
            distance = float(np.sqrt(np.square(pictures - exact).mean()))
            print(f"{solver} {steps} steps, {distance:.2f} levels from {EXACT[1]} steps")
            scores = measure(asked, lambda _, places, painted=pictures: painted[list(places)])
            results.setdefault(solver, {})[str(steps)] = {"distance": distance, **scores["overall"]}
    return results


def instruction(pipeline: ReferencePipeline, asked: list[Question]) -> dict[str, Any]:
    """Scores with and without the instruction in front of prompts."""
    bare = WithoutInstruction(**vars(pipeline.rules))
    return {
        "with": measure(asked, partial(paint, pipeline)),
        "without": measure(asked, partial(paint, replace(pipeline, rules=bare))),
    }


def sheet(pipeline: ReferencePipeline, asked: list[Question]) -> dict[str, Any]:
    """A sheet of twelve pictures of every category, in the order of the table."""
    each = len(asked) // 6
    chosen = [i for category in range(6) for i in range(category * each, category * each + 12)]
    save_grid(paint(pipeline, [asked[i].prompt for i in chosen], chosen), 12, SHEET)
    return {"prompts": [asked[i].prompt for i in chosen]}


MEASUREMENTS = {each.__name__: each for each in (guidance, solvers, instruction, sheet)}


def main() -> None:
    """Take one measurement and add it to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measurement", choices=MEASUREMENTS)
    parser.add_argument("--each", type=int, default=100, help="prompts of every category")
    parser.add_argument("--model", default="nano", help="another folder of the same kind")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = ReferencePipeline.open(given.model)
    taken = MEASUREMENTS[given.measurement](pipeline, questions(given.each))
    RESULTS.parent.mkdir(exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    RESULTS.write_text(json.dumps({**results, given.measurement: taken}, indent=1) + "\n")


if __name__ == "__main__":
    main()
