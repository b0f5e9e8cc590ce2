"""Fault injection: real services are killed, disconnected and stalled under load; an oracle checks the outcome of every confirmed order."""
