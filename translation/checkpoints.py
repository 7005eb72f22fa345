"""fairseq's checkpoints under torch >= 2.6, which loads with ``weights_only=True``.

fairseq calls ``torch.load`` without saying how, so its own checkpoints of models with arguments of
the older kind (``--arch transformer...``) do not load: they hold an ``argparse.Namespace``. The
classes that occur in them are registered here as safe; the safety of ``weights_only`` stays on.
"""

import argparse

import torch

torch.serialization.add_safe_globals([argparse.Namespace])
