"""One tenant's requests about another tenant's conversation: it is unknown, and its turn does not delay them. Real Postgres."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from actors.conversations import delete_conversation, get_conversation
from actors.llm.conversation_repository import SCHEMA, ConversationRepository, append_turn
from bus.errors import PermanentError
from bus.persistence.pool import open_pool
from bus.persistence.session_locks import SessionLocks, connect_session
from bus.settings import BusSettings
from contracts.conversation import ConversationMessage, DeleteConversation, GetConversation
from tests.support.actor_context import make_context

QUESTION = ConversationMessage(role="user", content="?", timestamp=datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
async def repository(bus_settings: BusSettings, database_url: str) -> AsyncIterator[ConversationRepository]:
    """With the conversation `c-1` of the tenant `shop`."""
    async with open_pool(bus_settings) as pool:
        assert pool
        await pool.execute(SCHEMA)
        await pool.execute("delete from atelier.conversations")
        locks = SessionLocks(lambda: connect_session(database_url))
        repository = ConversationRepository(pool, locks)
        async with pool.acquire() as connection, connection.transaction():
            await append_turn(connection, await repository.load_history("c-1", "shop"), QUESTION, "!")
        yield repository
        await locks.close()


@pytest.mark.parametrize("tenant", ["office", None])
async def test_conversation_of_another_tenant_is_unknown_without_a_wait(repository: ConversationRepository, tenant: str | None) -> None:
    """Also while its tenant has a turn: waiting for that would reveal that the conversation exists."""
    context = make_context(tenant=tenant)
    async with repository.lock_conversation("c-1"), asyncio.timeout(2):
        for request in (
            get_conversation(GetConversation(conversation_id="c-1"), context, repository=repository),
            delete_conversation(DeleteConversation(conversation_id="c-1"), context, repository=repository),
        ):
            with pytest.raises(PermanentError) as error:
                await request
            assert error.value.code == "conversation-unknown"
    assert len(await repository.list_messages("c-1", "shop")) == 2


async def test_own_conversation_is_deleted(repository: ConversationRepository) -> None:
    context = make_context(tenant="shop")
    await delete_conversation(DeleteConversation(conversation_id="c-1"), context, repository=repository)
    with pytest.raises(PermanentError, match="찾을 수 없습니다"):
        await get_conversation(GetConversation(conversation_id="c-1"), context, repository=repository)
