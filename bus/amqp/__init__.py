"""AMQP: the broker connection, publishing, topology, and what is built on them."""
