"""The table of model families in docs/engines.md is that of the classes."""

from pathlib import Path

import pytest

from ops.docgen import families, generate

pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip


def test_committed_table_is_up_to_date() -> None:
    assert not generate.stale_files(families.ROOT, generate.FILES_FROM_MODELS), "a family has changed: run `make documents`"


def test_every_family_has_a_row_with_what_its_class_says() -> None:
    from actors.engines.diffusion.families.registry import load_families

    lines = families.family_table().splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines[2:]}

    assert list(rows) == [family.name for family in load_families()]
    assert " | yes | yes | yes | yes | yes | diffusers, PEFT, kohya | unet, text_encoder, text_encoder_2 | " in rows["Stable Diffusion XL"]
    assert "original" in rows["Flux.1"]
    assert " | yes | no | no | no | no | " in rows["PixArt-Σ"]
    assert len({line.count("|") for line in lines}) == 1


def test_a_changed_family_makes_the_page_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    from actors.engines.diffusion.families.flux import Flux

    monkeypatch.setattr(Flux, "side_multiple", 64)

    assert generate.stale_files(families.ROOT, generate.FILES_FROM_MODELS) == [families.PAGE]


def test_a_page_without_marks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / families.PAGE).write_text("# Engines\n")
    monkeypatch.setattr(families, "ROOT", tmp_path)

    with pytest.raises(ValueError, match="lacks the marks"):
        families.engines_page()
