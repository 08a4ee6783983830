"""The parts of `TextModel`: batching, typed text, encoding and writing, edits, files."""
