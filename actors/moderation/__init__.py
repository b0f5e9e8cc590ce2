"""What the moderate step knows of texts and of its settings. The models that see pictures are in `actors/engines/moderation/`."""
