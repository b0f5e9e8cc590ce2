"""Outbound connections: protection against SSRF, and TLS."""
