"""What the text step shares: prompts, conversations and text engines."""
