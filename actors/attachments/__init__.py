"""What a user hands in beside words: pictures and documents, judged by their content, never by their name."""
