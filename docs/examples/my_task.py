"""A task of one's own: which of three growers a wine comes from, by its chemistry.

hybridkit train --task my_task:wine --hybrid --ternary --qat
"""

import torch
from sklearn.datasets import load_wine

from hybridkit.tasks.models.mlp import MLP
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.splits import stratified_splits
from hybridkit.tasks.supervised import SupervisedTask


def load() -> Splits:
    """178 wines, 13 measurements each, brought to comparable size."""
    measurements, grower = load_wine(return_X_y=True)
    inputs = torch.tensor(measurements, dtype=torch.float32)
    inputs = (inputs - inputs.median(0).values) / inputs.std(0)
    return stratified_splits(inputs, torch.tensor(grower), validation=0.15, test=0.25, seed=0)


def network() -> MLP:
    """13-128-128-3."""
    return MLP(13, (128, 128), 3)


wine = SupervisedTask(name="wine", load=load, models={"mlp": network}, source="scikit-learn load_wine")
