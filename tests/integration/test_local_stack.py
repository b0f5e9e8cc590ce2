"""The embedded parts start, answer, survive a kill and leave nothing behind."""

import aio_pika
import asyncpg


async def test_the_node_takes_a_connection(amqp_url: str) -> None:
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(durable=True, name="test", arguments={"x-queue-type": "quorum"})

        assert queue.name == "test"


async def test_the_database_answers(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        assert await connection.fetchval("select 1") == 1
    finally:
        await connection.close()
