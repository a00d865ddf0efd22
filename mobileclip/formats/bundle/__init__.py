"""The bundle: programs, tokenizer, prompt banks, golden values and an offline page in one archive."""
