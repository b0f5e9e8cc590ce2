"""Every actor and adapter that can dead-letter is known to the ingest and to the replay: the next one that is added fails here."""

from bus.dead_letters.replay import contract_of
from contracts.broker_names import dead_letter_queue
from contracts.image_generation import NestedOrder
from contracts.steps import DEAD_LETTERING_STEPS, EVENT_STEPS
from ops.registry import bus_participants


def test_every_dead_letter_queue_is_ingested() -> None:
    """Else its letters stay in RabbitMQ, where no operator finds them."""
    assert bus_participants().dead_letter_queues == sorted(map(dead_letter_queue, DEAD_LETTERING_STEPS))


def test_actors_of_events_are_those_bound_to_the_events_exchange() -> None:
    assert {actor.step for actor in bus_participants().event_actors} == set(EVENT_STEPS)


def test_edited_dead_letter_of_every_step_is_validated() -> None:
    """The contract of a replay is the command of the actor."""
    participants = bus_participants()
    actors = [actor for actor in (*participants.command_actors, *participants.event_actors) if not actor.is_query]
    assert len(actors) == len(DEAD_LETTERING_STEPS) - len(participants.adapters)
    assert {actor.step: contract_of(actor.step, {}) for actor in actors} == {actor.step: actor.command for actor in actors}
    assert [contract_of(adapter.name, {}) for adapter in participants.adapters] == [NestedOrder]
