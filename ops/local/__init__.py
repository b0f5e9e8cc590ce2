"""Real parts, embedded: a private RabbitMQ node, a PostgreSQL and a folder, all under one folder of the checkout."""
