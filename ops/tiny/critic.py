"""The tiny critic: LLaVA's own classes, trained to judge posters that code draws, in the very prompts of the judge and validate steps.

First the eye: every patch learns what it shows itself, and what the whole picture does. Then the tongue, with the eye as it is:
what a poster shows in words, and its verdicts as JSON.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any

from pydantic import BaseModel

from actors.engines.tiny_llava import SPECIAL, TEMPLATE
from actors.engines.vlm import VlmOptions
from actors.seeing.prompts import JUDGE_TEXT, validate_text
from ops.tiny.answering import answering, learned_tokenizer
from ops.tiny.posters import CLASSES, Poster, draw_poster, lettering, numbers
from ops.tiny.scenes import COLOURS, Scene, all_scenes, any_scene
from ops.tiny.slogans import slogans
from ops.tiny.training import Course

SIDE, PATCH = 112, 14
EYE, TONGUE = 128, 128
WORDS = 800
EYE_BATCH, EYE_STEPS = 32, 4500
BATCH, STEPS = 16, 3300
POOL = 5000
"""Posters that are drawn beforehand; the examination draws others."""
BARE = 0.4
"""The share of pictures without text: the validate step sees them so."""
FRAME = VlmOptions("").frame


@dataclass(frozen=True)
class Example:
    """`shown`: 3 × side × side, as the model's processor makes it, in half precision."""

    shown: Any
    poster: Poster


def build_critic() -> tuple[Any, Any]:
    """The model and its processor."""
    from transformers import CLIPImageProcessor, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = build_tokenizer()
    model = LlavaForConditionalGeneration(_config(tokenizer))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token=SPECIAL[-1], chat_template=TEMPLATE,
    )  # fmt: skip
    return model, processor


def _config(tokenizer: Any) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    eye = CLIPVisionConfig(
        hidden_size=EYE, intermediate_size=2 * EYE, num_hidden_layers=4, num_attention_heads=4, image_size=SIDE, patch_size=PATCH,
        projection_dim=EYE,
    )  # fmt: skip
    tongue = LlamaConfig(
        hidden_size=TONGUE, intermediate_size=2 * TONGUE, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=len(tokenizer), max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=eye, text_config=tongue, image_token_index=tokenizer.convert_tokens_to_ids(SPECIAL[-1]),
        vision_feature_select_strategy="default", vision_feature_layer=-1,
    )  # fmt: skip


def build_tokenizer() -> Any:
    dice = Random(0)
    posters = [draw_poster(dice) for _ in range(50)]
    said = [FRAME.format(image="", text=question) + answer for poster in posters for question, answer in lessons_on(poster, dice)]
    captions = [caption for scene in all_scenes() for caption in scene.captions]
    return learned_tokenizer([*said, *captions], WORDS, SPECIAL, padding_side="left")


def lessons_on(poster: Poster, dice: Random) -> list[tuple[str, str]]:
    """Question and answer for each of the two steps, and for naming. The advertisement's text names the scene, or another one."""
    meant = poster.scene if poster.scene and dice.random() < 0.5 else any_scene(dice)
    return [(JUDGE_TEXT, as_said(poster.opinion)), suiting(poster, meant, dice), naming(poster, dice)]


def naming(poster: Poster, dice: Random) -> tuple[str, str]:
    """No step asks it; whoever can name what is shown finds it in a text."""
    korean = dice.random() < 0.5
    scene = poster.scene
    name = scene.captions[4 if korean else 0] if scene else COLOURS[poster.ground][0] if korean else poster.ground
    return "무엇이 보입니까?" if korean else "What is shown?", name


def suiting(poster: Poster, meant: Scene, dice: Random) -> tuple[str, str]:
    copy = dice.choice(slogans(meant, korean=dice.random() < 0.5) if dice.random() < 0.7 else meant.captions)
    return validate_text(copy), as_said(poster.suits(meant))


def as_said(opinion: BaseModel) -> str:
    """As the grammar of the engine writes JSON."""
    return json.dumps(opinion.model_dump(mode="json"), ensure_ascii=False)


class Gallery:
    """Posters as the model sees them."""

    def __init__(self, processor: Any, count: int, seed: int) -> None:
        self._processor, self._count, self._dice = processor, count, Random(seed)

    @cached_property
    def examples(self) -> list[Example]:
        return [self._example() for _ in range(self._count)]

    def _example(self) -> Example:
        poster = draw_poster(self._dice, bare=self._dice.random() < BARE)
        shown = self._processor.image_processor(poster.pixels, return_tensors="pt")["pixel_values"][0]
        return Example(shown.half(), replace(poster, pixels=None))


def eye_course(model: Any, gallery: Gallery) -> Course:
    import torch

    wholes, own = torch.nn.Linear(EYE, sum(CLASSES)), torch.nn.Linear(EYE, 3)
    tower = model.model.vision_tower

    def loss(dice: Random) -> Any:
        chosen = dice.choices(gallery.examples, k=EYE_BATCH)
        seen = tower(shown(chosen)).last_hidden_state[:, 1:]
        answers = torch.tensor([numbers(one.poster) for one in chosen]).repeat_interleave(seen.shape[1], 0)
        letters = torch.tensor([lettering(one.poster, SIDE // PATCH) for one in chosen])
        told = [*wholes(seen).flatten(0, 1).split(CLASSES, dim=1), own(seen).flatten(0, 1)]
        pairs = zip(told, [*answers.unbind(1), letters.flatten()], strict=True)
        return sum(torch.nn.functional.cross_entropy(part, answer) for part, answer in pairs)

    return Course("critic-eye", [*tower.parameters(), *wholes.parameters(), *own.parameters()], loss, EYE_STEPS)


def course(model: Any, processor: Any, gallery: Gallery) -> Course:
    """Only the tongue learns; the eye stays as it is."""
    model.model.vision_tower.requires_grad_(False)
    picture = SPECIAL[-1] * (SIDE // PATCH) ** 2 + "\n"

    def loss(dice: Random) -> Any:
        chosen, kind = dice.choices(gallery.examples, k=BATCH), dice.randrange(3)
        questions, answers = zip(*(lessons_on(one.poster, dice)[kind] for one in chosen), strict=True)
        prompts = [FRAME.format(image=picture, text=question) for question in questions]
        return answering(model, processor.tokenizer, prompts, answers, pixel_values=shown(chosen))

    return Course("critic", [weight for weight in model.parameters() if weight.requires_grad], loss, STEPS)


def shown(examples: Sequence[Example]) -> Any:
    import torch

    return torch.stack([one.shown for one in examples]).float()
