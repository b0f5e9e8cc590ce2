"""The tiny writer: Llama's own classes, trained to answer an advertisement's brief with one line about the scene that it names.

The briefs are put as an order of kind `ad` puts them, and barely; the answer comes in the language of the brief.
"""

from random import Random
from typing import Any

from actors.engines.tiny_llama import SPECIAL, TEMPLATE
from gateway.orders import copy_order
from ops.tiny.answering import answering, learned_tokenizer
from ops.tiny.scenes import Scene, all_scenes, any_scene
from ops.tiny.slogans import slogans
from ops.tiny.training import Course

HIDDEN, LAYERS, HEAD = 128, 4, 32
"""vLLM's attention on a CPU takes no narrower heads."""
WORDS = 800
BATCH, STEPS = 32, 5000
TEMPERATURE = 0.7
"""Where a request says none: two askers get two lines."""
KOREAN = 0.6
"""The share of lessons in Korean: which colour is the ground's is harder to tell there."""
FRAMES = {False: ("{}", "{}", "An advertisement for {}", "Write about {}."), True: ("{}", "{}", "{} 광고", "{}, 광고 문구")}
"""How people ask, by whether they ask in Korean."""
FIRST_KOREAN = 4
"""Among a scene's captions."""

Messages = list[dict[str, str]]


def build_writer() -> tuple[Any, Any]:
    """The model and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer()
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HIDDEN // HEAD,
        num_key_value_heads=HIDDEN // HEAD, vocab_size=len(tokenizer), max_position_embeddings=2048,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.update(do_sample=True, temperature=TEMPERATURE)
    return model, tokenizer


def build_tokenizer() -> Any:
    return learned_tokenizer(everything_said(), WORDS, SPECIAL, chat_template=TEMPLATE)


def everything_said() -> list[str]:
    scenes = all_scenes()
    lines = [line for scene in scenes for korean in (False, True) for line in slogans(scene, korean=korean)]
    asked = [frame.format(caption) for scene in scenes for caption in scene.captions for frames in FRAMES.values() for frame in frames]
    return [*lines, *asked, *(message["content"] for message in copy_order("")["messages"])]


def lesson(dice: Random) -> tuple[Messages, str]:
    """What is asked, and what is to be answered."""
    scene, korean = any_scene(dice), dice.random() < KOREAN
    asked = brief(scene, dice, korean=korean)
    messages = copy_order(asked)["messages"] if dice.random() < 0.7 else [{"role": "user", "content": asked}]
    return messages, dice.choice(slogans(scene, korean=korean))


def brief(scene: Scene, dice: Random, *, korean: bool) -> str:
    captions = scene.captions[FIRST_KOREAN:] if korean else scene.captions[:FIRST_KOREAN]
    return dice.choice(FRAMES[korean]).format(dice.choice(captions))


def course(model: Any, tokenizer: Any) -> Course:
    def loss(dice: Random) -> Any:
        asked, answers = zip(*(lesson(dice) for _ in range(BATCH)), strict=True)
        return answering(model, tokenizer, [framed(tokenizer, messages) for messages in asked], answers)

    return Course("writer", list(model.parameters()), loss, STEPS)


def framed(tokenizer: Any, messages: Messages) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text
