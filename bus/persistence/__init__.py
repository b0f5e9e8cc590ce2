"""PostgreSQL: the connection pool and the inbox."""
