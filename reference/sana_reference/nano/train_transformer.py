"""Train nano's text encoder and transformer together, on the latents of the finished autoencoder."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from sana_runtime.prompt import PromptRules
from sana_runtime.tokenizer import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from sana_reference.autoencoder import Autoencoder
from sana_reference.checkpoint.defaults import SolverDefaults
from sana_reference.nano.drawn import scene_list
from sana_reference.nano.loop import learn
from sana_reference.nano.parallel import rank, workers
from sana_reference.nano.progress import Diary, save_grid
from sana_reference.nano.recipe import (
    AUTOENCODER,
    GUIDANCE,
    SCENES,
    SIDE,
    TEXT,
    TRANSFORMER,
    TRANSFORMER_RUN,
    Run,
    workplace,
)
from sana_reference.nano.texts import TextBatch, Texts, all_captions
from sana_reference.nano.tokenizer import train_tokenizer, write_tokenizer
from sana_reference.nano.train_autoencoder import as_pixels, training_pictures
from sana_reference.pipeline import ReferencePipeline
from sana_reference.text_encoder import Prefix, TextEncoder
from sana_reference.transformer import Block, SanaTransformer

__all__ = [
    "encode_share",
    "finish_latents",
    "finished_autoencoder",
    "finished_painter",
    "prepare_texts",
    "prepare_tokenizer",
    "train_transformer",
]

DROPPED = 0.1  # share of captions that are left out, for guidance
TEMPERATURE = 1.0  # of the captions' scores
WORDINGS = 3
DRAWS = 4  # noises drawn for each caption: the text is computed once for all
PROMPTS = (
    "a red circle",
    "a small green star in the top left corner",
    "a blue square to the left of a yellow triangle",
    "a pink heart above a black ring",
    "three orange diamonds",
    "four purple crosses on a white background",
    "two cyan crescents",
    "a white bar on a dark background",
    "a large brown cross on a striped beige background",
    "a black star below a red square",
    "a green ring and a blue heart",
    "an orange triangle at the bottom",
)


class Painter(nn.Module):
    """The two parts that are trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = TextEncoder(TEXT)
        self.transformer = SanaTransformer(TRANSFORMER)
        nn.init.normal_(self.text_encoder.embedding.weight, std=TEXT.dim**-0.5)  # Gemma multiplies by √dim
        nn.init.zeros_(self.transformer.out.weight)

    def velocity(self, latent: Tensor, sigma: Tensor, text: TextBatch, prefix: Prefix) -> Tensor:
        """The velocity of DRAWS noisy latents for every text, the texts repeated as a whole."""
        states = self.text_encoder(text.input_ids, text.text_mask, text.instructed, prefix)
        mask = text.row_mask.repeat(DRAWS, 1)
        velocity: Tensor = self.transformer(latent, 1000 * sigma, self._keys_and_values(states), mask)
        return velocity

    def _keys_and_values(self, states: Tensor) -> Tensor:
        """What `transformer.caption` gives, as a table: gradients through slices of a tensor cost a third of a step."""
        text = self.transformer.caption_projection(states)
        blocks = cast(Iterable[Block], self.transformer.blocks)
        pairs = [block.cross_attention.keys_and_values(text) for block in blocks]
        table = {(i, j): pair[j].repeat(DRAWS, 1, 1) for i, pair in enumerate(pairs) for j in (0, 1)}
        return cast(Tensor, table)


def finished_autoencoder(scaling_factor: float | None = None) -> Autoencoder:
    """The average that the autoencoder's last training ended with; its latents have unit spread if not told other."""
    factor = scaling_factor or float((workplace() / "scale.txt").read_text())
    model = Autoencoder(replace(AUTOENCODER, scaling_factor=factor))
    hardened = workplace() / "hardened" / "state.pt"
    source = hardened if hardened.is_file() else workplace() / "autoencoder" / "state.pt"
    model.load_state_dict(torch.load(source, weights_only=True)["average"])
    return model.eval().requires_grad_(False)


def finished_painter() -> Painter:
    """The average that the transformer's and the text encoder's training has come to."""
    model = Painter()
    model.load_state_dict(torch.load(workplace() / "transformer" / "state.pt", weights_only=True)["average"])
    return model.eval().requires_grad_(False)


def prepare_tokenizer() -> None:
    """Train the tokenizer on the captions of some scenes and keep it."""
    folder = workplace() / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        told = all_captions(scene_list(4000, seed=1, held_out=False), 1, seed=4)
        write_tokenizer(train_tokenizer(caption.text for each in told for caption in each), folder)


def prepare_texts() -> None:
    """Word the captions of all training scenes and keep their tokens."""
    path = workplace() / "texts.npz"
    if not path.is_file():
        tokenizer = Tokenizer(workplace() / "tokenizer" / "tokenizer.json")
        told = all_captions(scene_list(SCENES, seed=1, held_out=False), WORDINGS, seed=5)
        Texts.of(told, tokenizer, PromptRules.derive(tokenizer), TEMPERATURE).keep(path)


def encode_share() -> None:
    """Keep this worker's share of the training scenes' latents, unscaled."""
    if (workplace() / "latents.npy").is_file():
        return
    pictures = np.array_split(training_pictures(), workers())[rank()]
    model = finished_autoencoder(scaling_factor=1.0)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        parts = [model.encode(as_pixels(pictures[i : i + 50])) for i in range(0, len(pictures), 50)]
    np.save(workplace() / f"share-{rank()}.npy", torch.cat(parts).numpy())


def finish_latents() -> None:
    """Join the workers' shares and scale them to unit spread."""
    home = workplace()
    if (home / "latents.npy").is_file():
        return
    shares = sorted(home.glob("share-*.npy"), key=lambda path: int(path.stem.split("-")[1]))
    latents = np.concatenate([np.load(path) for path in shares])
    factor = round(1 / float(latents.std()), 5)
    (home / "scale.txt").write_text(str(factor))
    np.save(home / "latents.npy", latents * np.float32(factor))
    for path in shares:
        path.unlink()


@dataclass(frozen=True)
class Lessons:
    """What there is to learn from."""

    latents: NDArray[np.float32]
    texts: Texts
    tokenizer: Tokenizer
    rules: PromptRules

    @classmethod
    def read(cls) -> "Lessons":
        """What was prepared."""
        tokenizer = Tokenizer(workplace() / "tokenizer" / "tokenizer.json")
        texts = Texts.read(workplace() / "texts.npz")
        return cls(np.load(workplace() / "latents.npy"), texts, tokenizer, PromptRules.derive(tokenizer))

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """Turns latents into the pictures of the diary."""
        return finished_autoencoder()


def sigmas(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels (count,) whose logits are normal, shifted towards noise as the solvers shift them."""
    level = torch.sigmoid(torch.randn(count, generator=generator))
    return shift * level / (1 + (shift - 1) * level)


def loss_of(model: Painter, lessons: Lessons, run: Run, step: int) -> Tensor:
    """Mean squared error of the velocity on this worker's share of a batch."""
    rng = np.random.default_rng((run.seed, step, rank()))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    scenes = rng.integers(len(lessons.latents), size=run.batch // workers())
    clean = torch.from_numpy(lessons.latents[scenes]).repeat(DRAWS, 1, 1, 1)
    noise = torch.randn(clean.shape, generator=generator)
    sigma = sigmas(len(clean), TRANSFORMER.flow_shift, generator)
    level = sigma[:, None, None, None]
    with torch.autocast("cpu", torch.bfloat16):
        prefix = model.text_encoder.prefix(lessons.rules.prefix)
        text = lessons.texts.draw(scenes, DROPPED, rng)
        velocity = model.velocity((1 - level) * clean + level * noise, sigma, text, prefix)
    return F.mse_loss(velocity, noise - clean)


def pipeline_of(model: Painter, lessons: Lessons) -> ReferencePipeline:
    """The model as it is now, ready to paint."""
    return ReferencePipeline(
        transformer=model.transformer,
        autoencoder=lessons.autoencoder,
        text_encoder=model.text_encoder,
        tokenizer=lessons.tokenizer,
        rules=lessons.rules,
        prefix=model.text_encoder.prefix(lessons.rules.prefix),
        defaults=SolverDefaults("flow-dpm", 20, TRANSFORMER.flow_shift, GUIDANCE),
    )


def train_transformer(
    run: Run = TRANSFORMER_RUN, every: int = 400, judge: Callable[[ReferencePipeline], dict[str, float]] | None = None
) -> None:
    """Train to the end of `run`, resuming what an earlier call left; `judge` measures the averaged model."""
    diary, lessons = Diary(workplace() / "transformer"), Lessons.read()
    torch.manual_seed(run.seed)
    model = Painter()

    def measure(averaged: Painter, step: int) -> dict[str, float]:
        pipeline = pipeline_of(averaged, lessons)
        save_grid(pipeline.generate(PROMPTS, size=(SIDE, SIDE)), 6, diary.folder / f"grid-{step:05d}.png")
        return judge(pipeline) if judge else {}

    learn(model, run, diary, lambda step: loss_of(model, lessons, run, step), measure, every)
