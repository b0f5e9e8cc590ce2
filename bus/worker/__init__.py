"""The worker process: consume deliveries, decide their outcome, publish what follows."""
