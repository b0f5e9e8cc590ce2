"""Webhooks: the request, its delivery and its order per job."""
