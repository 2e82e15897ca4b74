"""From text to batches of token ids: reading -> documents -> tokenizer -> corpus -> batches."""
