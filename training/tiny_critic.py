"""The tiny critic: LLaVA's own classes, trained to judge posters that code draws, in the very prompts of the judge and validate steps.

First the eye: every patch learns what it shows itself, and what the whole picture does. Then the tongue, with the eye as it is: which
words are true of a picture, then what it shows in words, and the verdicts as JSON.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from actors.engines.language.tiny_llava import CHAT_TEMPLATE, SPECIAL_TOKENS
from training.causal_lm import cross_entropy, tokenize_pairs, train_tokenizer
from training.critic_examples import PROMPT_TEMPLATE, CriticExample, judge_example, naming_example, random_target_scene, validate_example
from training.grounding import PROBED_LAYER, GroundingHead
from training.poster_dataset import PosterDataset, stack_pixels
from training.posters import CLASS_COUNTS, Poster, class_labels, draw_poster, text_patch_labels
from training.scenes import all_scenes
from training.trainer import TrainingRun

IMAGE_SIZE, PATCH_SIZE = 112, 14
VISION_WIDTH, LANGUAGE_WIDTH = 128, 128
VOCABULARY_SIZE = 800
VISION_BATCH, VISION_STEPS = 32, 4500
LANGUAGE_BATCH, LANGUAGE_STEPS = 16, 7000


def build_critic() -> tuple[Any, Any]:
    """The model and its processor."""
    from transformers import CLIPImageProcessor, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = build_tokenizer()
    model = LlavaForConditionalGeneration(_config(tokenizer))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    images = CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=PATCH_SIZE, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token=SPECIAL_TOKENS[-1], chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    return model, processor


def _config(tokenizer: Any) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    eye = CLIPVisionConfig(
        hidden_size=VISION_WIDTH, intermediate_size=2 * VISION_WIDTH, num_hidden_layers=4, num_attention_heads=4, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE,
        projection_dim=VISION_WIDTH,
    )  # fmt: skip
    tongue = LlamaConfig(
        hidden_size=LANGUAGE_WIDTH, intermediate_size=2 * LANGUAGE_WIDTH, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=len(tokenizer), max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=eye, text_config=tongue, image_token_index=tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS[-1]),
        vision_feature_select_strategy="default", vision_feature_layer=-1,
    )  # fmt: skip


def build_tokenizer() -> Any:
    dice = Random(0)
    posters = [draw_poster(dice) for _ in range(50)]
    lessons = [kind(poster, dice) for poster in posters for kind in EXAMPLE_KINDS]
    said = [PROMPT_TEMPLATE.format(image="", text=lesson.question) + lesson.answer for lesson in lessons]
    captions = [caption for scene in all_scenes() for caption in scene.captions]
    return train_tokenizer([*said, *captions], VOCABULARY_SIZE, SPECIAL_TOKENS, padding_side="left")


def vision_run(model: Any, dataset: PosterDataset) -> TrainingRun:
    import torch

    wholes, own = torch.nn.Linear(VISION_WIDTH, sum(CLASS_COUNTS)), torch.nn.Linear(VISION_WIDTH, 3)
    tower = model.model.vision_tower

    def loss(dice: Random) -> Any:
        chosen = dice.choices(dataset.examples, k=VISION_BATCH)
        seen = tower(stack_pixels(chosen)).last_hidden_state[:, 1:]
        answers = torch.tensor([class_labels(one.poster) for one in chosen]).repeat_interleave(seen.shape[1], 0)
        letters = torch.tensor([text_patch_labels(one.poster, IMAGE_SIZE // PATCH_SIZE) for one in chosen])
        told = [*wholes(seen).flatten(0, 1).split(CLASS_COUNTS, dim=1), own(seen).flatten(0, 1)]
        pairs = zip(told, [*answers.unbind(1), letters.flatten()], strict=True)
        return sum(torch.nn.functional.cross_entropy(part, answer) for part, answer in pairs)

    return TrainingRun("critic-eye", [*tower.parameters(), *wholes.parameters(), *own.parameters()], loss, VISION_STEPS)


def language_run(model: Any, processor: Any, dataset: PosterDataset, head: GroundingHead) -> TrainingRun:
    """Only the tongue learns; the eye stays as it is."""
    model.model.vision_tower.requires_grad_(False)
    picture = SPECIAL_TOKENS[-1] * (IMAGE_SIZE // PATCH_SIZE) ** 2 + "\n"
    tokenizer = processor.tokenizer

    def loss(dice: Random) -> Any:
        chosen, [ask] = dice.choices(dataset.examples, k=LANGUAGE_BATCH), dice.choices(EXAMPLE_KINDS, weights=EXAMPLE_WEIGHTS)
        lessons = [ask(one.poster, dice) for one in chosen]
        prompts = [PROMPT_TEMPLATE.format(image=picture, text=lesson.question) for lesson in lessons]
        ids, wanted = tokenize_pairs(tokenizer, prompts, [lesson.answer for lesson in lessons])
        mask = (ids != tokenizer.pad_token_id).long()
        told = model(input_ids=ids, attention_mask=mask, pixel_values=stack_pixels(chosen), output_hidden_states=True)
        wrong = cross_entropy(told.logits, wanted)
        claims = [lesson.claims for lesson in lessons]
        return wrong + head.loss(tokenizer, told.hidden_states[PROBED_LAYER], prompts, claims) if any(claims) else wrong

    learners = [weight for weight in model.parameters() if weight.requires_grad]
    return TrainingRun("critic", [*learners, *head.parameters], loss, LANGUAGE_STEPS)


EXAMPLE_KINDS: Sequence[Callable[[Poster, Random], CriticExample]] = (
    lambda poster, _: judge_example(poster),
    lambda poster, dice: validate_example(poster, random_target_scene(poster, dice), dice),
    naming_example,
)
"""What it is asked."""
EXAMPLE_WEIGHTS = (0.55, 0.35, 0.1)
"""How often. To judge takes longest to learn; to name it has learned before."""
