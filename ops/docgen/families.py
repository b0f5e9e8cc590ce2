"""The table of what the image engine runs, family by family, in docs/engines.md between its marks."""

from typing import Any

from ops.docgen.settings_catalog import ROOT

PAGE = "docs/engines.md"
BEGIN, END = "<!-- families -->\n", "<!-- /families -->"
EDITS = ("img2img", "inpaint", "control")
KOHYA, ORIGINAL = ("lora_unet_", "lora_transformer_"), ("diffusion_model.", "model.diffusion_model.")
COLUMNS = (
    "family", "`_class_name`", "text", *EDITS, "9 channels", "LoRA keys", "LoRA on", "sides", "size, steps, guidance", "schedulers",
    "tokens of a prompt",
)  # fmt: skip


def engines_page() -> str:
    """The page as it is, with the table made anew."""
    text = (ROOT / PAGE).read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE} lacks the marks {BEGIN.strip()} and {END}")
    return f"{before}{begin}{family_table()}{end}{after}"


def family_table() -> str:
    """Markdown, from the class attributes of the families."""
    from actors.engines.diffusion.families.registry import load_families

    rows = [COLUMNS, ("---",) * len(COLUMNS), *(family_row(family) for family in load_families())]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def family_row(family: Any) -> tuple[str, ...]:
    defaults = family.defaults
    return (
        family.name,
        ", ".join(f"`{index}`" for index in family.indexes),
        "yes",
        *("yes" if edit in family.edits else "no" for edit in EDITS),
        "yes" if family.has_inpainting_checkpoints else "no",
        ", ".join(lora_forms(family.lora_prefixes)),
        ", ".join(dict.fromkeys(family.lora_prefixes.values())),
        f"× {family.side_multiple}",
        f"{defaults.side}, {defaults.steps}, {defaults.guidance_scale:g}",
        f"{defaults.scheduler} (of {len(family.schedulers)})" if len(family.schedulers) > 1 else defaults.scheduler,
        f"{family.prompt_tokens}",
    )


def lora_forms(prefixes: dict[str, str]) -> list[str]:
    """The key formats that the prefixes stand for."""
    forms = ["diffusers", "PEFT", "kohya"] if any(prefix in KOHYA for prefix in prefixes) else ["diffusers", "PEFT"]
    return [*forms, "original"] if any(prefix in ORIGINAL for prefix in prefixes) else forms
