"""Postgres: the connection pool and the inbox."""
