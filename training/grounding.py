"""Grounding: which words of a text are true of an image, learned word by word before whole texts are judged.

Trained only on whole texts the critic stayed at chance: decision 7. Few patches and a short text keep a step short.
"""

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

from actors.engines.language.tiny_llava import SPECIAL_TOKENS
from training.causal_lm import cross_entropy, tokenize_pairs
from training.critic_examples import PROMPT_TEMPLATE, CriticExample, WordClaims, ad_copy_for, naming_example, random_target_scene
from training.poster_dataset import PosterDataset
from training.posters import Poster
from training.trainer import TrainingRun

PROBED_LAYER = 3
"""The third of four layers: the last one combines what the model knows of each word."""
PATCH_COUNT = 4
"""Each patch encodes the whole image, so a few are enough."""
BATCH, NAMING_BATCH, STEPS = 64, 32, 2000


class GroundingHead:
    """Predicts from the language model's third layer, at each word of a text, whether it is true of the image. Used in training only."""

    def __init__(self, width: int) -> None:
        import torch

        self._head = torch.nn.Linear(width, 2)

    @property
    def parameters(self) -> list[Any]:
        return list(self._head.parameters())

    def loss(self, tokenizer: Any, hidden: Any, prompts: Sequence[str], claims: Sequence[WordClaims]) -> Any:
        """`hidden`: the states after the third layer, batch × length × width."""
        import torch

        places = [(row, word_position(tokenizer, prompt, word), true) for row, prompt in enumerate(prompts) for word, true in claims[row]]
        rows, columns, truths = (torch.tensor(part) for part in zip(*places, strict=True))
        return torch.nn.functional.cross_entropy(self._head(hidden[rows, columns]), truths.long())


def word_position(tokenizer: Any, prompt: str, word: str) -> int:
    """The index of a word's last token in a prompt. The text stands between two lines of hyphens."""
    starts = prompt.index(word, prompt.index("-----"))
    return int(tokenizer(prompt).char_to_token(starts + len(word) - 1))


def grounding_run(model: Any, tokenizer: Any, dataset: PosterDataset, head: GroundingHead) -> TrainingRun:
    """Trains the language model; the vision tower is frozen."""
    model.model.vision_tower.requires_grad_(False)
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    patches_of = cache(lambda: dataset.encode(model.model.vision_tower))

    def loss(rng: Random) -> Any:
        rows, columns = rng.choices(range(len(dataset.examples)), k=BATCH), rng.sample(range(patches_of().shape[1]), PATCH_COUNT)
        posters, patches = [dataset.examples[row].poster for row in rows], patches_of()[rows][:, columns].float()
        relevance = [relevance_example(poster, rng) for poster in posters]
        relevance_loss, hidden = forward_examples(model, tokenizer, patches, relevance)
        naming_loss, _ = forward_examples(
            model, tokenizer, patches[:NAMING_BATCH], [naming_example(poster, rng) for poster in posters[:NAMING_BATCH]]
        )
        prompts, claims = [format_prompt(example) for example in relevance], [example.claims for example in relevance]
        return relevance_loss + naming_loss + head.loss(tokenizer, hidden[PROBED_LAYER], prompts, claims)

    return TrainingRun("critic-grounding", [*trainable, *head.parameters], loss, STEPS)


def relevance_example(poster: Poster, rng: Random) -> CriticExample:
    """The validate step's question, reduced to the text and the score."""
    target_scene = random_target_scene(poster, rng)
    copy, claims = ad_copy_for(poster, target_scene, rng)
    return CriticExample(f"-----\n{copy}\n-----", f" {poster.expected_validation(target_scene).relevance_score}", claims)


def format_prompt(example: CriticExample) -> str:
    return PROMPT_TEMPLATE.format(image=f"{SPECIAL_TOKENS[-1] * PATCH_COUNT}\n", text=example.question)


def forward_examples(model: Any, tokenizer: Any, patches: Any, examples: Sequence[CriticExample]) -> tuple[Any, Any]:
    """The loss of the answers, and the states after every layer. `patches`: the vision tower's output, examples × patches × width."""
    ids, labels = tokenize_pairs(tokenizer, [format_prompt(example) for example in examples], [example.answer for example in examples])
    image_positions = (ids == model.config.image_token_index)[:, :, None]
    language_model, projected = model.model.language_model, model.model.multi_modal_projector(patches)
    embedded = language_model.embed_tokens(ids).masked_scatter(image_positions, projected)
    mask = (ids != tokenizer.pad_token_id).long()
    hidden = language_model(inputs_embeds=embedded, attention_mask=mask, output_hidden_states=True).hidden_states
    return cross_entropy(model.lm_head(hidden[-1]), labels), hidden
