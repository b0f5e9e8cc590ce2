"""Picture processing for the actors: decoding, fonts, text layout, contrast, signatures, PNG metadata, content credentials."""
