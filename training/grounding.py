"""Grounding: which words of a text are true of a picture, learned word by word before whole texts are judged.

Asked only about whole texts the critic stayed at chance: decision 7. Four patches and a short text, so that a step is short, too.
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
"""Of the four: what it knows of a word, the fourth gathers."""
PATCH_COUNT = 4
"""Each knows the whole picture, so a few will do."""
BATCH, NAMING_BATCH, STEPS = 64, 32, 2000


class GroundingHead:
    """Reads from the tongue's third layer, at each word of a text about the picture, whether the word is true. Only training has it."""

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
    """The last token of a word in a prompt. The text stands between two lines of hyphens."""
    starts = prompt.index(word, prompt.index("-----"))
    return int(tokenizer(prompt).char_to_token(starts + len(word) - 1))


def grounding_run(model: Any, tokenizer: Any, dataset: PosterDataset, head: GroundingHead) -> TrainingRun:
    """Only the tongue learns; the eye stays as it is."""
    model.model.vision_tower.requires_grad_(False)
    learners = [weight for weight in model.parameters() if weight.requires_grad]
    seen = cache(lambda: dataset.encode(model.model.vision_tower))

    def loss(dice: Random) -> Any:
        chosen, patches = dice.choices(range(len(dataset.examples)), k=BATCH), dice.sample(range(seen().shape[1]), PATCH_COUNT)
        posters, patched = [dataset.examples[one].poster for one in chosen], seen()[chosen][:, patches].float()
        promised = [relevance_example(poster, dice) for poster in posters]
        fits, hidden = forward_examples(model, tokenizer, patched, promised)
        named, _ = forward_examples(
            model, tokenizer, patched[:NAMING_BATCH], [naming_example(poster, dice) for poster in posters[:NAMING_BATCH]]
        )
        return (
            fits
            + named
            + head.loss(tokenizer, hidden[PROBED_LAYER], [format_prompt(one) for one in promised], [one.claims for one in promised])
        )

    return TrainingRun("critic-grounding", [*learners, *head.parameters], loss, STEPS)


def relevance_example(poster: Poster, rng: Random) -> CriticExample:
    """The validate step's question, cut to the text and the score."""
    meant = random_target_scene(poster, rng)
    copy, claims = ad_copy_for(poster, meant, rng)
    return CriticExample(f"-----\n{copy}\n-----", f" {poster.expected_validation(meant).relevance_score}", claims)


def format_prompt(example: CriticExample) -> str:
    return PROMPT_TEMPLATE.format(image=f"{SPECIAL_TOKENS[-1] * PATCH_COUNT}\n", text=example.question)


def forward_examples(model: Any, tokenizer: Any, patches: Any, examples: Sequence[CriticExample]) -> tuple[Any, Any]:
    """How unlikely the answers are, and the states after every layer. `patches`: what the eye sees, lessons × patches × width."""
    ids, wanted = tokenize_pairs(tokenizer, [format_prompt(lesson) for lesson in examples], [lesson.answer for lesson in examples])
    images = (ids == model.config.image_token_index)[:, :, None]
    tongue, projected = model.model.language_model, model.model.multi_modal_projector(patches)
    embedded = tongue.embed_tokens(ids).masked_scatter(images, projected)
    mask = (ids != tokenizer.pad_token_id).long()
    hidden = tongue(inputs_embeds=embedded, attention_mask=mask, output_hidden_states=True).hidden_states
    return cross_entropy(model.lm_head(hidden[-1]), wanted), hidden
