"""History in a prompt is trimmed by whole turns, the oldest first."""

from datetime import UTC, datetime

from actors.llm.prompt_builder import Prompt, reduce_turns, with_history
from contracts.conversation import ConversationMessage

HISTORY = tuple((role, f"{role} {turn} " + "x" * 100) for turn in range(5) for role in ("user", "assistant"))
USER_MESSAGE = ConversationMessage(role="user", content="now", timestamp=datetime.now(UTC))
PROMPT = Prompt([{"role": "system", "content": "be kind"}, {"role": "user", "content": "now"}], USER_MESSAGE, False, False)


def test_history_is_placed_between_system_and_user_message() -> None:
    contents = [message["content"][:11] for message in with_history(PROMPT, HISTORY, 2)]
    assert contents == ["be kind", "user 3 xxxx", "assistant 3", "user 4 xxxx", "assistant 4", "now"]
    assert with_history(PROMPT, HISTORY, 0) == PROMPT.messages


def test_history_is_trimmed_in_proportion_to_overflow() -> None:
    assert reduce_turns(HISTORY, 5, 1001, 1000) == 4
    assert reduce_turns(HISTORY, 5, 2000, 1000) == 3
    assert reduce_turns(HISTORY, 1, 9000, 1000) == 0
    assert reduce_turns(HISTORY, 5, 0, 1000) == 4
