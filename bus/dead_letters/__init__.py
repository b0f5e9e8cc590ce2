"""Dead letters: taken out of their queues into Postgres, so that looking disturbs nothing; grouped by cause; sent again once and safely."""
