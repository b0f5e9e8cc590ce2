"""The craft of pictures on the CPU: reading them safely, letters, signatures, and what is written into a PNG. No actor lives here."""
