"""The tiny critic: LLaVA's own classes, trained to judge posters that code draws, in the very prompts of the judge and validate steps.

First the eye: every patch learns what it shows itself, and what the whole picture does. Then the tongue, with the eye as it is: which
words are true of a picture, then what it shows in words, and the verdicts as JSON.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from actors.engines.tiny_llava import SPECIAL, TEMPLATE
from ops.tiny.answering import learned_tokenizer, sequences, unlikely
from ops.tiny.gallery import Gallery, shown
from ops.tiny.grounding import LAYER, Head
from ops.tiny.lessons import FRAME, Lesson, any_meant, judging, naming, suiting
from ops.tiny.posters import CLASSES, Poster, draw_poster, lettering, numbers
from ops.tiny.scenes import all_scenes
from ops.tiny.training import Course

SIDE, PATCH = 112, 14
EYE, TONGUE = 128, 128
WORDS = 800
EYE_BATCH, EYE_STEPS = 32, 4500
BATCH, STEPS = 16, 7000


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
    lessons = [kind(poster, dice) for poster in posters for kind in KINDS]
    said = [FRAME.format(image="", text=lesson.question) + lesson.answer for lesson in lessons]
    captions = [caption for scene in all_scenes() for caption in scene.captions]
    return learned_tokenizer([*said, *captions], WORDS, SPECIAL, padding_side="left")


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


def course(model: Any, processor: Any, gallery: Gallery, head: Head) -> Course:
    """Only the tongue learns; the eye stays as it is."""
    model.model.vision_tower.requires_grad_(False)
    picture = SPECIAL[-1] * (SIDE // PATCH) ** 2 + "\n"
    tokenizer = processor.tokenizer

    def loss(dice: Random) -> Any:
        chosen, [ask] = dice.choices(gallery.examples, k=BATCH), dice.choices(KINDS, weights=SHARES)
        lessons = [ask(one.poster, dice) for one in chosen]
        prompts = [FRAME.format(image=picture, text=lesson.question) for lesson in lessons]
        ids, wanted = sequences(tokenizer, prompts, [lesson.answer for lesson in lessons])
        mask = (ids != tokenizer.pad_token_id).long()
        told = model(input_ids=ids, attention_mask=mask, pixel_values=shown(chosen), output_hidden_states=True)
        wrong = unlikely(told.logits, wanted)
        claims = [lesson.claims for lesson in lessons]
        return wrong + head.loss(tokenizer, told.hidden_states[LAYER], prompts, claims) if any(claims) else wrong

    learners = [weight for weight in model.parameters() if weight.requires_grad]
    return Course("critic", [*learners, *head.parameters], loss, STEPS)


KINDS: Sequence[Callable[[Poster, Random], Lesson]] = (
    lambda poster, _: judging(poster),
    lambda poster, dice: suiting(poster, any_meant(poster, dice), dice),
    naming,
)
"""What it is asked."""
SHARES = (0.55, 0.35, 0.1)
"""How often. To judge takes longest to learn; to name it has learned before."""
