"""How the backend is spoken to: what is said, in which order, where to, and what its answer means. No actor lives here."""
