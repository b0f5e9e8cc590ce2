"""AMQP: connection, publishing, topology, and request/reply, subscriptions and jobs on top of them."""
