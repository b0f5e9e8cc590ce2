"""Decoding of files from outside, in processes that are killed when a file costs too much time or memory."""
