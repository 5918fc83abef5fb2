"""Text to token ids: normaliser, tokenizer, segmenter."""
