"""The worker process: consumes deliveries, decides their outcome, publishes the messages of that outcome."""
