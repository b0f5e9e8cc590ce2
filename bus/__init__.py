"""Messaging, persistence and storage. The only package that uses AMQP, S3 and the database; it decides the outcome of each delivery."""
