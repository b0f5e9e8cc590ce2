"""Network safety: which addresses may be reached, and TLS."""
