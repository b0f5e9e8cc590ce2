"""The craft of writing with a language model: what it is asked, what was said before, what may be asked of it."""
