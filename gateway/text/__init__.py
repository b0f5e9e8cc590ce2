"""What the APIs for text generation share: calls to the text worker, its status, uploads."""
