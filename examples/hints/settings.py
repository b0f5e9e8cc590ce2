"""Where the model server and the problems are. The command line comes first, then the environment, then the defaults here."""

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8080/v1"
"""Atelier's gateway on this machine."""
DEFAULT_PROBLEMS = Path(__file__).with_name("problems.json")


@dataclass(frozen=True)
class HintSettings:
    """`model`: None for the first that the server serves. `api_key`: any text where the server needs none."""

    url: str
    api_key: str
    model: str | None
    problems: Path
    temperature: float

    @classmethod
    def from_environment(cls) -> "HintSettings":
        """Raises ValueError for a temperature that is no number."""
        return cls(
            url=os.environ.get("VLLM_SERVER_URL") or DEFAULT_URL,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            model=os.environ.get("VLLM_MODEL") or None,
            problems=Path(os.environ.get("DATA_FILE_PATH") or DEFAULT_PROBLEMS),
            temperature=float(os.environ.get("DEFAULT_TEMPERATURE") or 0.7),
        )
