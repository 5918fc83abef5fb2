"""From text to sound: voice, stages, pipeline."""
