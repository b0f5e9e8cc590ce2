"""The past in a prompt is cut by whole turns, the oldest first."""

from datetime import UTC, datetime

from actors.writing.prompting import Asked, fewer, with_past
from contracts.conversation import Said

PAST = tuple((role, f"{role} {turn} " + "x" * 100) for turn in range(5) for role in ("user", "assistant"))
SAID = Said(role="user", content="now", timestamp=datetime.now(UTC))
ASKED = Asked([{"role": "system", "content": "be kind"}, {"role": "user", "content": "now"}], SAID, False, False)


def test_the_last_turns_stand_between_the_system_and_the_question() -> None:
    said = [message["content"][:11] for message in with_past(ASKED, PAST, 2)]
    assert said == ["be kind", "user 3 xxxx", "assistant 3", "user 4 xxxx", "assistant 4", "now"]
    assert with_past(ASKED, PAST, 0) == ASKED.messages


def test_a_little_too_long_loses_one_turn_and_far_too_long_several() -> None:
    assert fewer(PAST, 5, 1001, 1000) == 4
    assert fewer(PAST, 5, 2000, 1000) == 3
    assert fewer(PAST, 1, 9000, 1000) == 0
    assert fewer(PAST, 5, 0, 1000) == 4
