"""tiny-critic: LLaVA's own classes, trained to judge posters drawn by code, with the prompts of the judge and validate steps.

The vision tower learns first: every patch predicts its own content and that of the whole image. Then the language model, with the vision
tower frozen: which words are true of an image, then naming what it shows, and the verdicts as JSON.
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

    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH, intermediate_size=2 * VISION_WIDTH, num_hidden_layers=4, num_attention_heads=4,
        image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, projection_dim=VISION_WIDTH,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=LANGUAGE_WIDTH, intermediate_size=2 * LANGUAGE_WIDTH, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=len(tokenizer), max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS[-1]),
        vision_feature_select_strategy="default", vision_feature_layer=-1,
    )  # fmt: skip


def build_tokenizer() -> Any:
    rng = Random(0)
    posters = [draw_poster(rng) for _ in range(50)]
    examples = [kind(poster, rng) for poster in posters for kind in EXAMPLE_KINDS]
    texts = [PROMPT_TEMPLATE.format(image="", text=example.question) + example.answer for example in examples]
    captions = [caption for scene in all_scenes() for caption in scene.captions]
    return train_tokenizer([*texts, *captions], VOCABULARY_SIZE, SPECIAL_TOKENS, padding_side="left")


def vision_run(model: Any, dataset: PosterDataset) -> TrainingRun:
    import torch

    image_head, patch_head = torch.nn.Linear(VISION_WIDTH, sum(CLASS_COUNTS)), torch.nn.Linear(VISION_WIDTH, 3)
    tower = model.model.vision_tower

    def loss(rng: Random) -> Any:
        examples = rng.choices(dataset.examples, k=VISION_BATCH)
        patches = tower(stack_pixels(examples)).last_hidden_state[:, 1:]
        image_labels = torch.tensor([class_labels(example.poster) for example in examples]).repeat_interleave(patches.shape[1], 0)
        patch_labels = torch.tensor([text_patch_labels(example.poster, IMAGE_SIZE // PATCH_SIZE) for example in examples])
        logits = [*image_head(patches).flatten(0, 1).split(CLASS_COUNTS, dim=1), patch_head(patches).flatten(0, 1)]
        pairs = zip(logits, [*image_labels.unbind(1), patch_labels.flatten()], strict=True)
        return sum(torch.nn.functional.cross_entropy(prediction, labels) for prediction, labels in pairs)

    return TrainingRun("critic-vision", [*tower.parameters(), *image_head.parameters(), *patch_head.parameters()], loss, VISION_STEPS)


def language_run(model: Any, processor: Any, dataset: PosterDataset, head: GroundingHead) -> TrainingRun:
    """Trains the language model; the vision tower is frozen."""
    model.model.vision_tower.requires_grad_(False)
    image = SPECIAL_TOKENS[-1] * (IMAGE_SIZE // PATCH_SIZE) ** 2 + "\n"
    tokenizer = processor.tokenizer

    def loss(rng: Random) -> Any:
        chosen, [make_example] = rng.choices(dataset.examples, k=LANGUAGE_BATCH), rng.choices(EXAMPLE_KINDS, weights=EXAMPLE_WEIGHTS)
        examples = [make_example(one.poster, rng) for one in chosen]
        prompts = [PROMPT_TEMPLATE.format(image=image, text=example.question) for example in examples]
        ids, labels = tokenize_pairs(tokenizer, prompts, [example.answer for example in examples])
        mask = (ids != tokenizer.pad_token_id).long()
        output = model(input_ids=ids, attention_mask=mask, pixel_values=stack_pixels(chosen), output_hidden_states=True)
        answer_loss = cross_entropy(output.logits, labels)
        claims = [example.claims for example in examples]
        return answer_loss + head.loss(tokenizer, output.hidden_states[PROBED_LAYER], prompts, claims) if any(claims) else answer_loss

    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    return TrainingRun("critic", [*trainable, *head.parameters], loss, LANGUAGE_STEPS)


EXAMPLE_KINDS: Sequence[Callable[[Poster, Random], CriticExample]] = (
    lambda poster, _: judge_example(poster),
    lambda poster, rng: validate_example(poster, random_target_scene(poster, rng), rng),
    naming_example,
)
"""Judge, validate and naming examples."""
EXAMPLE_WEIGHTS = (0.55, 0.35, 0.1)
"""Their shares. Judging takes longest to learn; naming was learned in the grounding."""
