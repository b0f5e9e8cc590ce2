"""tiny-writer: Llama's own classes, trained to answer a brief with one slogan about the scene that it names.

Briefs come in the prompt of an order of kind `ad`, and bare; the answer is in the language of the brief.
"""

from random import Random
from typing import Any

from actors.engines.language.tiny_llama import CHAT_TEMPLATE, SPECIAL_TOKENS
from gateway.jobs.orders import ad_copy_command
from training.causal_lm import answer_loss, train_tokenizer
from training.scenes import Scene, all_scenes, random_scene
from training.slogans import slogans
from training.trainer import TrainingRun

HIDDEN_SIZE, LAYER_COUNT, HEAD_SIZE = 128, 4, 32
"""vLLM's attention on a CPU supports no narrower heads."""
VOCABULARY_SIZE = 800
BATCH, STEPS = 32, 5000
TEMPERATURE = 0.7
"""The default where a request has none, so that repeated requests get different lines."""
KOREAN_SHARE = 0.6
"""The share of examples in Korean, where it is harder to tell which colour is the background's."""
BRIEF_TEMPLATES = {False: ("{}", "{}", "An advertisement for {}", "Write about {}."), True: ("{}", "{}", "{} 광고", "{}, 광고 문구")}
"""By whether the brief is in Korean."""
FIRST_KOREAN_CAPTION = 4
"""Index in a scene's captions."""

Messages = list[dict[str, str]]


def build_writer() -> tuple[Any, Any]:
    """The model and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer()
    config = LlamaConfig(
        hidden_size=HIDDEN_SIZE, intermediate_size=2 * HIDDEN_SIZE, num_hidden_layers=LAYER_COUNT,
        num_attention_heads=HIDDEN_SIZE // HEAD_SIZE, num_key_value_heads=HIDDEN_SIZE // HEAD_SIZE, vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.update(do_sample=True, temperature=TEMPERATURE)
    return model, tokenizer


def build_tokenizer() -> Any:
    return train_tokenizer(tokenizer_corpus(), VOCABULARY_SIZE, SPECIAL_TOKENS, chat_template=CHAT_TEMPLATE)


def tokenizer_corpus() -> list[str]:
    scenes = all_scenes()
    lines = [line for scene in scenes for korean in (False, True) for line in slogans(scene, korean=korean)]
    briefs = [
        template.format(caption)
        for scene in scenes
        for caption in scene.captions
        for templates in BRIEF_TEMPLATES.values()
        for template in templates
    ]
    return [*lines, *briefs, *(message["content"] for message in ad_copy_command("")["messages"])]


def sample_example(rng: Random) -> tuple[Messages, str]:
    """Messages and the answer."""
    scene, korean = random_scene(rng), rng.random() < KOREAN_SHARE
    brief = sample_brief(scene, rng, korean=korean)
    messages = ad_copy_command(brief)["messages"] if rng.random() < 0.7 else [{"role": "user", "content": brief}]
    return messages, rng.choice(slogans(scene, korean=korean))


def sample_brief(scene: Scene, rng: Random, *, korean: bool) -> str:
    captions = scene.captions[FIRST_KOREAN_CAPTION:] if korean else scene.captions[:FIRST_KOREAN_CAPTION]
    return rng.choice(BRIEF_TEMPLATES[korean]).format(rng.choice(captions))


def writer_run(model: Any, tokenizer: Any) -> TrainingRun:
    def loss(rng: Random) -> Any:
        prompts, answers = zip(*(sample_example(rng) for _ in range(BATCH)), strict=True)
        return answer_loss(model, tokenizer, [format_chat(tokenizer, messages) for messages in prompts], answers)

    return TrainingRun("writer", list(model.parameters()), loss, STEPS)


def format_chat(tokenizer: Any, messages: Messages) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text
