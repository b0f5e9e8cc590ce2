"""The settings of reading the text of judged pictures, which needs the extra `ocr`."""

from pydantic import Field, FilePath
from pydantic_settings import BaseSettings, SettingsConfigDict

from bus.settings import StringList

CALLS_TO_ACTION = (
    *("buy", "buy now", "shop", "shop now", "order", "order now", "get yours", "try", "book now", "sign up", "subscribe", "join", "call"),
    *("learn more", "visit", "download", "reserve", "come in", "start now"),
    *("지금 구매", "구매", "구입", "주문", "신청", "예약", "문의", "방문", "가입", "다운로드", "만나보세요", "확인하세요", "즐겨보세요"),
)


class OcrSettings(BaseSettings):
    """Limits are those of one picture. Durations are seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="OCR_")

    enabled: bool = Field(True, description="Whether judge reads the text of the picture. Without the extra `ocr` it never does.")
    model: FilePath | None = Field(
        None,
        description="A PP-OCR recognition model (ONNX, with its characters in its metadata), such as RapidOCR's for Korean. None: the one "
        "of the package, which reads Latin, Chinese and Japanese characters, and no Hangul.",
    )
    max_side: int = Field(1280, ge=64, le=4096, description="Pixels. A longer picture is scaled down before it is read, a small one up.")
    threads: int = Field(2, ge=1, description="CPU threads.")
    seconds: float = Field(60.0, gt=0, description="Time limit; when it is exceeded, the process is killed and nothing is measured.")
    memory_bytes: int = Field(4 << 30, ge=1 << 30, description="Address space of the process, of which it uses about a quarter.")
    calls_to_action: StringList = Field(
        CALLS_TO_ACTION, description="Words that ask the viewer to do something, comma-separated, in any language."
    )
