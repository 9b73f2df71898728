"""Everything in this folder runs in Triton's interpreter: `test_triton.py` starts it so, in a process of its own.

By hand: `TRITON_INTERPRET=1 pytest tests/kernels/interpreted/check_beam_attention.py`.
"""

import os

import hypothesis

if os.environ.get("TRITON_INTERPRET") == "1":
    # Shrinking a failure would take the interpreter an hour.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("interpreter", deadline=None, phases=phases)
    hypothesis.settings.load_profile("interpreter")
else:
    collect_ignore_glob = ["*"]
