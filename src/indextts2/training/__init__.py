"""The recipe of the embedded voice, and fine-tuning."""
