"""Pictures: decoding, text layout, fonts, signatures, content credentials."""
