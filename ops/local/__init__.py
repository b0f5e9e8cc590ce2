"""Local services: a private RabbitMQ node, an embedded PostgreSQL and a store in a folder, all under one folder."""
