"""What every request passes before its route: tracing, authentication, rate and size limits."""
