"""Characters that nobody sees between two others, and that therefore make no difference between two words.

They are Unicode's default-ignorable code points (such as the zero-width space, the variation selectors of emoji and the Hangul fillers),
all format characters, and the control characters that are no white space.
"""

import unicodedata
from functools import cache

DEFAULT_IGNORABLE = (
    range(0x00AD, 0x00AE),
    range(0x034F, 0x0350),
    range(0x061C, 0x061D),
    range(0x115F, 0x1161),
    range(0x17B4, 0x17B6),
    range(0x180B, 0x1810),
    range(0x200B, 0x2010),
    range(0x202A, 0x202F),
    range(0x2060, 0x2070),
    range(0x3164, 0x3165),
    range(0xFE00, 0xFE10),
    range(0xFEFF, 0xFF00),
    range(0xFFA0, 0xFFA1),
    range(0xFFF0, 0xFFF9),
    range(0x13430, 0x13440),  # format characters, of which Python 3.11 lacks some
    range(0x1BCA0, 0x1BCA4),
    range(0x1D173, 0x1D17B),
    range(0xE0000, 0xE1000),
)
"""Default_Ignorable_Code_Point of Unicode and a few format characters, also where nothing is assigned yet. Python's `unicodedata` does not
have the property."""
FORMAT_AND_CONTROL = ("Cf", "Cc")
LAST_ASSIGNED = 0xE1000
"""No format or control character lies beyond."""


@cache
def invisible_characters() -> dict[int, None]:
    """The code points, for `str.translate`."""
    categories = ((code, unicodedata.category(chr(code))) for code in range(LAST_ASSIGNED))
    controls = (code for code, category in categories if category in FORMAT_AND_CONTROL and not chr(code).isspace())
    return dict.fromkeys([*controls, *(code for codes in DEFAULT_IGNORABLE for code in codes)])


def remove_invisible(text: str) -> str:
    return text.translate(invisible_characters())
