"""Grounding: which words of a text are true of a picture, learned word by word before whole texts are judged.

Asked only about whole texts the critic stayed at chance: decision 7. Four patches and a short text, so that a step is short, too.
"""

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

from actors.engines.tiny_llava import SPECIAL
from ops.tiny.answering import sequences, unlikely
from ops.tiny.gallery import Gallery
from ops.tiny.lessons import FRAME, Claims, Lesson, any_meant, naming, promise
from ops.tiny.posters import Poster
from ops.tiny.training import Course

LAYER = 3
"""Of the four: what it knows of a word, the fourth gathers."""
PATCHES = 4
"""Each knows the whole picture, so a few will do."""
BATCH, NAMED, STEPS = 64, 32, 2000


class Head:
    """Reads from the tongue's third layer, at each word of a text about the picture, whether the word is true. Only training has it."""

    def __init__(self, width: int) -> None:
        import torch

        self._head = torch.nn.Linear(width, 2)

    @property
    def parameters(self) -> list[Any]:
        return list(self._head.parameters())

    def loss(self, tokenizer: Any, hidden: Any, prompts: Sequence[str], claims: Sequence[Claims]) -> Any:
        """`hidden`: the states after the third layer, batch × length × width."""
        import torch

        places = [(row, place(tokenizer, prompt, word), true) for row, prompt in enumerate(prompts) for word, true in claims[row]]
        rows, columns, truths = (torch.tensor(part) for part in zip(*places, strict=True))
        return torch.nn.functional.cross_entropy(self._head(hidden[rows, columns]), truths.long())


def place(tokenizer: Any, prompt: str, word: str) -> int:
    """The last token of a word in a prompt. The text stands between two lines of hyphens."""
    starts = prompt.index(word, prompt.index("-----"))
    return int(tokenizer(prompt).char_to_token(starts + len(word) - 1))


def course(model: Any, tokenizer: Any, gallery: Gallery, head: Head) -> Course:
    """Only the tongue learns; the eye stays as it is."""
    model.model.vision_tower.requires_grad_(False)
    learners = [weight for weight in model.parameters() if weight.requires_grad]
    seen = cache(lambda: gallery.seen(model.model.vision_tower))

    def loss(dice: Random) -> Any:
        chosen, patches = dice.choices(range(len(gallery.examples)), k=BATCH), dice.sample(range(seen().shape[1]), PATCHES)
        posters, patched = [gallery.examples[one].poster for one in chosen], seen()[chosen][:, patches].float()
        promised = [promising(poster, dice) for poster in posters]
        fits, hidden = said(model, tokenizer, patched, promised)
        named, _ = said(model, tokenizer, patched[:NAMED], [naming(poster, dice) for poster in posters[:NAMED]])
        return fits + named + head.loss(tokenizer, hidden[LAYER], [framed(one) for one in promised], [one.claims for one in promised])

    return Course("critic-grounding", [*learners, *head.parameters], loss, STEPS)


def promising(poster: Poster, dice: Random) -> Lesson:
    """The validate step's question, cut to the text and the score."""
    meant = any_meant(poster, dice)
    copy, claims = promise(poster, meant, dice)
    return Lesson(f"-----\n{copy}\n-----", f" {poster.suits(meant).relevance_score}", claims)


def framed(lesson: Lesson) -> str:
    return FRAME.format(image=f"{SPECIAL[-1] * PATCHES}\n", text=lesson.question)


def said(model: Any, tokenizer: Any, patches: Any, lessons: Sequence[Lesson]) -> tuple[Any, Any]:
    """How unlikely the answers are, and the states after every layer. `patches`: what the eye sees, lessons × patches × width."""
    ids, wanted = sequences(tokenizer, [framed(lesson) for lesson in lessons], [lesson.answer for lesson in lessons])
    images = (ids == model.config.image_token_index)[:, :, None]
    tongue, projected = model.model.language_model, model.model.multi_modal_projector(patches)
    embedded = tongue.embed_tokens(ids).masked_scatter(images, projected)
    mask = (ids != tokenizer.pad_token_id).long()
    hidden = tongue(inputs_embeds=embedded, attention_mask=mask, output_hidden_states=True).hidden_states
    return unlikely(model.lm_head(hidden[-1]), wanted), hidden
