"""IndexTTS2: zero-shot voice cloning with emotion."""
