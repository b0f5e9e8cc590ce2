"""The past in a prompt is cut by whole turns, the oldest first."""

from datetime import UTC, datetime

from actors.llm.prompt_builder import Prompt, reduce_turns, with_history
from contracts.conversation import ConversationMessage

PAST = tuple((role, f"{role} {turn} " + "x" * 100) for turn in range(5) for role in ("user", "assistant"))
SAID = ConversationMessage(role="user", content="now", timestamp=datetime.now(UTC))
ASKED = Prompt([{"role": "system", "content": "be kind"}, {"role": "user", "content": "now"}], SAID, False, False)


def test_history_is_placed_between_system_and_user_message() -> None:
    said = [message["content"][:11] for message in with_history(ASKED, PAST, 2)]
    assert said == ["be kind", "user 3 xxxx", "assistant 3", "user 4 xxxx", "assistant 4", "now"]
    assert with_history(ASKED, PAST, 0) == ASKED.messages


def test_history_is_trimmed_in_proportion_to_overflow() -> None:
    assert reduce_turns(PAST, 5, 1001, 1000) == 4
    assert reduce_turns(PAST, 5, 2000, 1000) == 3
    assert reduce_turns(PAST, 1, 9000, 1000) == 0
    assert reduce_turns(PAST, 5, 0, 1000) == 4
