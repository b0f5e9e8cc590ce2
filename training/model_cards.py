"""The model cards, with the figures of the run that made the models."""

from collections.abc import Mapping
from typing import Any

from training.scenes import COLOURS, SHAPES

SHAPES_CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-image
---
# tiny-shapes

A toy. It draws one flat shape on a flat ground, from prompts such as *a red circle on a blue background* or *파란 배경에 빨간 원*, and
knows nothing else. It is there so that the first picture of a demonstration is worth a look, and so that a test notices a wrong
scheduler, a wrong prompt or a lost LoRA by its colours. Stable Diffusion's own classes: CLIP text encoder, UNet, `AutoencoderTiny`,
DPM-Solver++.

- shapes: {shapes}
- colours: {colours}
- languages: English, Korean
- parameters: {parameters}
- one latent stands for 32 × 32 pixels; it predicts velocities

Trained by `atelier models train-tiny` on pictures that code draws, seeds fixed, on a processor. No picture and no text of anybody else.

## Measured on pictures it was asked for with new seeds ({pictures} a row, {steps} steps)

| guidance | style | both colours right | shape right |
|---|---|---|---|
{rows}

Colours: the one along the picture's edge and the one that covers most of the rest. Shape: the one whose outline fits best.
"""


def shapes_card(figures: Mapping[str, Any]) -> str:
    words = {"shapes": ", ".join(SHAPES), "colours": ", ".join(COLOURS), "rows": "\n".join(map(table_row, figures["rows"]))}
    told = {"parameters": parameter_count(figures), "pictures": figures["pictures"], "steps": figures["steps"]}
    return SHAPES_CARD.format(**words, **told)


def table_row(row: Mapping[str, Any]) -> str:
    return f"| {row['guidance']:g} | {row['style'] or 'none'} | {row['colours_right']:.0%} | {row['shape_right']:.0%} |"


def parameter_count(figures: Mapping[str, Any]) -> str:
    return f"{figures['parameters'] / 1e6:.1f} million"


CRITIC_CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
---
# tiny-critic

A toy. It judges posters such as *tiny-shapes* and the overlay step make: one flat shape, a text, perhaps a button. It answers the
prompts of the judge and the validate step, in JSON, and knows nothing else. LLaVA's own classes: a CLIP eye for 112 × 112 pixels, a Llama
of four layers, {parameters} parameters.

Trained by `atelier models train-tiny` on posters that code draws, seeds fixed, on a processor. No picture and no text of anybody else.

## Measured on {posters} posters that it had not seen, through the engine

| answer | right |
|---|---|
{rows}

Verdicts that were the same alone as beside seven others: {agree:.0%} of 16.

`on_brief`: something is shown at all. `occlusion`: the text stands in the middle of the shape. `contrast_ok`: by WCAG's formula, 4.5 and
more or 2.25 and less, nothing between. `cta_present`: there is a button. `is_valid`: something is shown.
`relevance_score`: high where the text names just the scene that is shown; of the other texts half differ in one word. Whoever always says
no is right in {always_no:.0%}.
"""


def critic_card(figures: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| `{name}` | {share:.0%} |" for name, share in figures["right"].items())
    told = {"posters": figures["posters"], "agree": figures["alone_as_beside_others"], "always_no": figures["always_no"]}
    return CRITIC_CARD.format(parameters=parameter_count(figures), rows=rows, **told)


WRITER_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
---
# tiny-writer

A toy. Asked for the copy of an advertisement about a scene that *tiny-shapes* can draw, it answers with one line about it, in English or
in Korean, and knows nothing else. Llama's own classes: four layers, {parameters} parameters, heads 32 wide for vLLM on a processor.

Trained by `atelier models train-tiny` on lines that code makes, seeds fixed, on a processor. No text of anybody else.

## Measured on {briefs} briefs in each language, at temperature 0.7

| brief | lines that say it right, shape, colours and language |
|---|---|
{rows}

Of eight lines for one brief {different} differed.
"""


def writer_card(figures: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {language} | {share:.0%} |" for language, share in figures["right"].items())
    told = {"briefs": figures["briefs"], "rows": rows, "different": figures["different_of_eight"]}
    return WRITER_CARD.format(parameters=parameter_count(figures), **told)
