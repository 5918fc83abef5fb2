"""UnifiedVoice: conditioners, GPT-2 stack, generation."""
