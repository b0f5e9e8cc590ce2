"""Dead letters: moved from their queues into Postgres, so that reading them disturbs no queue; grouped by cause; replayed exactly once."""
