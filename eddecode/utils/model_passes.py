"""One thread at a time runs models.

A pass replaces parts of a model while it lasts (its attention, its head, its layers), and keys and values that samplers
keep are theirs together. Of two threads that decode with one pair at the same time, each would read what the other one
put there, and give wrong tokens. So a step of a batch, and a call that scores, hold this lock; threads take turns
between steps.
"""

from __future__ import annotations

import threading

MODEL_PASSES = threading.RLock()
