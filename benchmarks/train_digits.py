"""Train the demo's ResNet-20 on scikit-learn's digits and write the checkpoint that ships with the package.

    python benchmarks/train_digits.py [--output FILE]

Seeded; on one machine and one PyTorch it writes the same file each time. The held-out digits are not looked at until
the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from hawq_tvm.sources.data import digits_images, digits_split
from hawq_tvm.sources.zoo import ZOO

EPOCHS = 40
BATCH = 64
PEAK_RATE = 0.1


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to two pixels and add noise."""
    down, right = (int(torch.randint(-2, 3, (), generator=generator)) for _ in range(2))
    return torch.roll(images, (down, right), (2, 3)) + 0.2 * torch.randn(images.shape, generator=generator)


def train(seed: int = 0) -> tuple[nn.Module, float]:
    """A trained network and its share of right answers on the held-out digits."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    arrays, targets = digits_images()
    images, labels = torch.from_numpy(arrays), torch.from_numpy(targets)
    train_indices, held_out = digits_split(targets)
    train_images, train_labels = images[train_indices], labels[train_indices]
    network = ZOO["resnet20"].make()
    optimizer = torch.optim.SGD(network.parameters(), PEAK_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = len(train_indices) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=EPOCHS * steps)
    for epoch in range(EPOCHS):
        network.train()
        total = 0.0
        for batch in torch.randperm(len(train_indices), generator=generator)[: steps * BATCH].view(steps, BATCH):
            outputs = network(augment(train_images[batch], generator))
            loss = F.cross_entropy(outputs, train_labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1:2d}/{EPOCHS}  loss {total / steps:.4f}", flush=True)
    network.eval()
    with torch.no_grad():
        right = network(images[held_out]).argmax(1) == labels[held_out]
    return network, float(right.float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ZOO["resnet20"].weights)
    arguments = parser.parse_args()
    network, accuracy = train()
    state = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    save_file(state, arguments.output, metadata={"held_out_accuracy": f"{accuracy:.4f}"})
    print(f"held-out accuracy {accuracy:.4f}; wrote {arguments.output}")


if __name__ == "__main__":
    main()
