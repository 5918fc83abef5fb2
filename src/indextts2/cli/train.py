"""Train a small voice stage by stage, or fine-tune a model. A run that was stopped goes on where it was."""

from indextts2.training.command import add_options, run

__all__ = ["add_options", "run"]
