"""Forced alignment of phonemes to frames from CTC output: which text token every code belongs to.

Axes: T frames (50 Hz), V labels, S states of the CTC lattice (blanks between labels).
"""

from __future__ import annotations

import numpy as np


def ctc_path(log_probabilities: np.ndarray, labels: list[int], blank: int = 0) -> np.ndarray:
    """Frame (len(labels),) at which the best CTC path first emits each label (Viterbi over the lattice).

    Args:
        log_probabilities: (T, V).
        labels: the labels that were said, in order; needs T >= their number and one frame more per equal pair.
    """
    states = np.full(2 * len(labels) + 1, blank)
    states[1::2] = labels
    # A label may follow the label before it directly, unless they are equal.
    may_skip = np.zeros(len(states), dtype=bool)
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    frames = len(log_probabilities)
    score = np.full(len(states), -np.inf)
    score[:2] = log_probabilities[0, states[:2]]
    came_from = np.zeros((frames, len(states)), dtype=np.int8)
    for t in range(1, frames):
        step = np.concatenate(([-np.inf], score[:-1]))
        skip = np.where(may_skip, np.concatenate(([-np.inf, -np.inf], score[:-2])), -np.inf)
        choices = np.stack((score, step, skip))
        came_from[t] = choices.argmax(axis=0)
        score = choices.max(axis=0) + log_probabilities[t, states]
    state = len(states) - 1 if score[-1] >= score[-2] else len(states) - 2
    emitted = np.zeros(len(labels), dtype=np.int64)
    for t in range(frames - 1, -1, -1):
        if state % 2:
            emitted[state // 2] = t
        state -= int(came_from[t, state])
    return emitted


def token_of_frame(emitted: np.ndarray, token_of_label: np.ndarray, frames: int) -> np.ndarray:
    """Text token (frames,) that each frame belongs to: labels change half-way between their emissions.

    Args:
        emitted: (labels,) frame of every label.
        token_of_label: (labels,) index of every label in the text, which holds blanks between words besides.
        frames: number of frames of the clip.
    """
    borders = (emitted[1:] + emitted[:-1] + 1) // 2
    label = np.searchsorted(borders, np.arange(frames), side="right")
    return token_of_label[label]
