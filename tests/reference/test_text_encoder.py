"""Our Gemma-2 forward gives the states of transformers' model, and of diffusers' pipeline for whole prompts."""

import random
import re
from dataclasses import replace

import pytest
import torch
from diffusers import SanaPipeline
from sana_reference.config import TextConfig
from sana_reference.renames.text_encoder import TEXT_ENCODER, TEXT_ENCODER_IN_LANGUAGE_MODEL
from sana_reference.text_encoder import Prefix, TextEncoder
from sana_runtime.errors import UsageError
from sana_runtime.prompt import INSTRUCTION, PromptRules, batch
from sana_runtime.tokenizer import Tokenizer
from torch import Tensor
from torch.export import Dim, export
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, Gemma2Model

SMALL = TextConfig(
    vocabulary=97, dim=24, depth=2, heads=4, kv_heads=2, head_dim=8, hidden=40, query_scalar=8.0, attention_softcap=5.0
)
TOLERANCE = 1e-5


def theirs(config: TextConfig) -> Gemma2Config:
    """The same model described to transformers."""
    return Gemma2Config(
        vocab_size=config.vocabulary,
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.hidden,
        rms_norm_eps=config.norm_eps,
        query_pre_attn_scalar=int(config.query_scalar),
        attn_logit_softcapping=config.attention_softcap,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        attn_implementation="eager",
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Large weights, norms included, so that scores reach the soft cap and every weight matters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3


def load(ours: TextEncoder, model: torch.nn.Module, rows=TEXT_ENCODER) -> TextEncoder:
    """Copy transformers' weights by the rename table; every tensor is used once and none is missing."""
    state = dict(model.state_dict())
    state.pop("lm_head.weight", None)
    renamed = {}
    for name in ours.state_dict():
        number = "".join(re.findall(r"layers\.(\d+)\.", name))
        row = next(row for row in rows if row[0].replace("{i}", number) == name)
        renamed[name] = torch.cat([state.pop(source.replace("{i}", number)) for source in row[1:]])
    assert not state
    ours.load_state_dict(renamed, strict=True)
    return ours.eval()


def pair(config: TextConfig, seed: int = 0) -> tuple[TextEncoder, Gemma2Model]:
    """Our model and transformers' with the same random weights."""
    model = Gemma2Model(theirs(config)).eval()
    randomise(model, seed)
    return load(TextEncoder(config), model), model


def relative(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value expected."""
    return float((actual - expected).abs().max() / expected.abs().max())


def drawn_configs(count: int) -> list[TextConfig]:
    draw = random.Random(7)

    def config() -> TextConfig:
        kv_heads, group = draw.choice((1, 2, 3)), draw.choice((1, 2, 4))
        return TextConfig(
            vocabulary=draw.choice((50, 97)),
            dim=kv_heads * group * draw.choice((3, 5, 8)),  # transformers insists on a multiple
            depth=draw.choice((1, 2, 3)),
            heads=kv_heads * group,
            kv_heads=kv_heads,
            head_dim=draw.choice((4, 8, 16)),
            hidden=draw.choice((20, 33)),
            norm_eps=draw.choice((1e-6, 1e-2)),
            rope_theta=draw.choice((1e2, 1e4)),
            query_scalar=draw.choice((4.0, 16.0)),
            attention_softcap=draw.choice((2.0, 50.0)),
        )

    return [config() for _ in range(count)]


def drawn_prompts(config: TextConfig, seed: int) -> tuple[list[int], Tensor, Tensor]:
    """A random prefix, and a batch of right-padded tokens with its mask."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    prefix, size, longest = draw.randint(1, 9), draw.randint(1, 3), draw.randint(2, 12)
    tokens = torch.randint(config.vocabulary, (size, longest), generator=generator)
    lengths = torch.randint(1, longest + 1, (size, 1), generator=generator)
    return [2, *range(10, 9 + prefix)], tokens, torch.arange(longest) < lengths


@torch.no_grad()
def states_of(model: Gemma2Model, prefix: list[int], tokens: Tensor, mask: Tensor) -> Tensor:
    """transformers' states of BOS and of the tokens that follow `prefix`."""
    head = torch.tensor([prefix]).expand(len(tokens), -1)
    everything = torch.cat((torch.ones_like(head, dtype=torch.bool), mask), dim=1).long()
    states = model(torch.cat((head, tokens), dim=1), attention_mask=everything).last_hidden_state
    return torch.cat((states[:, :1], states[:, len(prefix) :]), dim=1)


def with_bos(mask: Tensor) -> Tensor:
    return torch.cat((torch.ones_like(mask[:, :1]), mask), dim=1)


@pytest.mark.parametrize("seed", range(16))
@torch.no_grad()
def test_states_equal_transformers_with_and_without_the_instruction(seed):
    config = drawn_configs(16)[seed]
    ours, model = pair(config, seed)
    prefix, tokens, mask = drawn_prompts(config, seed)
    for instructed in (True, False):
        flags = torch.full((len(tokens),), instructed)
        actual = ours(tokens, mask, flags, ours.prefix(prefix))
        expected = states_of(model, prefix if instructed else prefix[:1], tokens, mask)
        assert relative(actual[with_bos(mask)], expected[with_bos(mask)]) <= TOLERANCE


@torch.no_grad()
def test_one_batch_mixes_instructed_and_plain_prompts():
    ours, _ = pair(SMALL)
    prefix, tokens = ours.prefix([2, 5, 6, 7]), torch.tensor([[11, 12, 13], [11, 12, 13]])
    mask, flags = torch.ones(2, 3, dtype=torch.bool), torch.tensor([True, False])
    mixed = ours(tokens, mask, flags, prefix)
    for row in range(2):
        alone = ours(tokens[row : row + 1], mask[:1], flags[row : row + 1], prefix)
        assert relative(mixed[row : row + 1], alone) <= TOLERANCE
    assert relative(mixed[0], mixed[1]) > 0.1


@torch.no_grad()
def test_a_token_that_the_mask_hides_is_not_attended_to():
    ours, model = pair(SMALL)
    mask = torch.tensor([[True, False, True, True]])
    tokens = torch.tensor([[11, 12, 13, 14]])
    actual = ours(tokens, mask, torch.tensor([True]), ours.prefix([2, 5, 6]))
    expected = states_of(model, [2, 5, 6], tokens, mask)
    assert relative(actual[with_bos(mask)], expected[with_bos(mask)]) <= TOLERANCE


@torch.no_grad()
def test_what_pads_a_prompt_never_matters():
    ours, _ = pair(SMALL)
    prefix, flags = ours.prefix([2, 5, 6]), torch.tensor([True])
    short = ours(torch.tensor([[11, 12]]), torch.tensor([[True, True]]), flags, prefix)
    for padding in ([0, 0, 0], [96, 2, 40]):
        tokens = torch.tensor([[11, 12, *padding]])
        padded = ours(tokens, torch.tensor([[True, True, False, False, False]]), flags, prefix)
        assert relative(padded[:, :3], short) <= 1e-6


@torch.no_grad()
def test_a_language_model_s_names_load_too():
    model = Gemma2ForCausalLM(theirs(SMALL)).eval()
    randomise(model, 3)
    ours = load(TextEncoder(SMALL), model, TEXT_ENCODER_IN_LANGUAGE_MODEL)
    tokens, mask = torch.tensor([[11, 12, 13]]), torch.ones(1, 3, dtype=torch.bool)
    actual = ours(tokens, mask, torch.tensor([True]), ours.prefix([2, 5]))
    assert relative(actual, states_of(model.model, [2, 5], tokens, mask)) <= TOLERANCE


@torch.no_grad()
def test_bfloat16_errs_no_more_than_transformers_does():
    config = replace(SMALL, dim=52, depth=4)  # √52 is rounded in bfloat16
    ours, model = pair(config)
    prefix, tokens, mask = drawn_prompts(config, 5)
    flags = torch.ones(len(tokens), dtype=torch.bool)
    for weights in (model, ours):  # the exact states are those of the rounded weights
        weights.to(torch.bfloat16).to(torch.float32)
    exact = states_of(model, prefix, tokens, mask)[with_bos(mask)]
    low, low_model = ours.to(torch.bfloat16), model.to(torch.bfloat16)
    actual = low(tokens, mask, flags, low.prefix(prefix))
    assert actual.dtype == torch.bfloat16
    expected = states_of(low_model, prefix, tokens, mask)
    error = (actual[with_bos(mask)].float() - exact).square().mean()
    their_error = (expected[with_bos(mask)].float() - exact).square().mean()
    assert error <= 1.5 * their_error


@torch.no_grad()
def test_bfloat16_embeddings_are_scaled_by_the_rounded_factor():
    config = replace(SMALL, dim=52)  # √52 is not a bfloat16
    entered: list[Tensor] = []
    ours, model = (model.to(torch.bfloat16) for model in pair(config))
    for layers in (ours.layers, model.layers):
        layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: entered.append([*args, *kwargs.values()][0]), with_kwargs=True
        )
    ours.prefix(range(97))
    model(torch.arange(97)[None])
    assert torch.equal(*entered)


@torch.no_grad()
def test_one_export_serves_every_batch_and_length():
    ours, _ = pair(SMALL)
    prefix = ours.prefix([2, 5, 6, 7])

    def feeds(size: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(size * 100 + length)
        lengths = torch.randint(1, length + 1, (size, 1), generator=generator)
        tokens = torch.randint(SMALL.vocabulary, (size, length), generator=generator)
        return tokens, torch.arange(length) < lengths, torch.arange(size) % 2 == 0

    size, length = Dim("B", min=1), Dim("L", min=1)
    shapes = ({0: size, 1: length}, {0: size, 1: length}, {0: size}, Prefix(None, None))
    exported = export(ours, (*feeds(3, 5), prefix), dynamic_shapes=shapes, strict=False).module()
    for sizes in ((1, 1), (1, 7), (2, 1), (4, 299)):
        torch.testing.assert_close(exported(*feeds(*sizes), prefix), ours(*feeds(*sizes), prefix), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_text_beyond_the_window_is_refused():
    ours, _ = pair(SMALL)
    tokens = torch.zeros(1, 4095, dtype=torch.long)
    with pytest.raises(UsageError, match="4097 tokens"):
        ours(tokens, tokens.bool(), torch.tensor([True]), ours.prefix([2, 3]))
    with pytest.raises(UsageError, match="5000 tokens"):
        ours.prefix([2] * 5000)


def test_the_full_size_has_the_parameters_of_gemma_2_2b():
    with torch.device("meta"):
        model = TextEncoder(TextConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_614_341_888


ORDINARY = ("a cat on the mat", "  A Red Circle above TWO blue squares\n", "user prompt: a cat", "x\ny")
MERGING = ("a", "red circle", "1girl", "!", "'quoted'", "été", "<eos>", "<start_of_turn>user")
STANDING_ALONE = ("", " \n", "\na cat", "一只红色的猫", "、逗号", "🙂 smile", "👩\u200d👩\u200d👧", "\x00\x07bell")
TRUNCATED = ("cat " * 297, "cat " * 299, "circle and square " * 200, "猫" * 400)
PROMPTS = ORDINARY + MERGING + STANDING_ALONE + TRUNCATED


def pipeline_and_ours(folder) -> tuple[SanaPipeline, TextEncoder, Tokenizer]:
    """diffusers' pipeline with a tiny random text encoder, our encoder with the same weights, our tokenizer."""
    tokenizer = Tokenizer(folder / "tokenizer.json")
    config = replace(SMALL, vocabulary=len(tokenizer))
    ours, model = pair(config)
    pipeline = SanaPipeline(AutoTokenizer.from_pretrained(folder), model, vae=None, transformer=None, scheduler=None)
    return pipeline, ours, tokenizer


@torch.no_grad()
def assert_pipeline_parity(folder):
    pipeline, ours, tokenizer = pipeline_and_ours(folder)
    rules = PromptRules.derive(tokenizer)
    prefix = ours.prefix(rules.prefix)
    for start in range(0, len(PROMPTS), 3):  # three prompts and their reversals as negatives
        prompts = list(PROMPTS[start : start + 3])
        negatives = [prompt[::-1] for prompt in prompts]
        states, mask, negative_states, negative_mask = pipeline.encode_prompt(
            prompts, negative_prompt=negatives, device="cpu", complex_human_instruction=INSTRUCTION.split("\n")
        )
        inputs = batch(
            [rules.instruct(tokenizer, prompt) for prompt in prompts]
            + [rules.plain(tokenizer, prompt) for prompt in negatives]
        )
        rows = torch.from_numpy(inputs.row_mask)
        text = ours(*map(torch.from_numpy, (inputs.input_ids, inputs.text_mask, inputs.instructed)), prefix)
        expected = torch.cat((states, negative_states))
        expected_rows = torch.cat((mask, negative_mask)).bool()
        assert rows.sum(1).tolist() == expected_rows.sum(1).tolist(), prompts
        for index, prompt in enumerate(prompts + negatives):
            assert relative(text[index, rows[index]], expected[index, expected_rows[index]]) <= TOLERANCE, prompt


def test_prompts_give_the_states_of_diffusers_pipeline(tiny_tokenizer):
    assert_pipeline_parity(tiny_tokenizer)


def test_prompts_that_merge_into_the_instruction_give_the_states_of_diffusers_pipeline(merging_tokenizer):
    assert_pipeline_parity(merging_tokenizer)


def test_prompts_give_the_states_of_diffusers_pipeline_with_gemma_s_tokenizer(gemma_tokenizer):
    assert_pipeline_parity(gemma_tokenizer)
