"""Schroedinger bridges: the diffusion between two laws that is nearest to a Wiener process."""

from inference.bridges.gaussian import GaussianBridge
from inference.bridges.maximin import LearnedPath, MaxMin
from inference.bridges.train import BridgeSettings, coupled_samples, train_bridge

__all__ = [
    "BridgeSettings",
    "GaussianBridge",
    "LearnedPath",
    "MaxMin",
    "coupled_samples",
    "train_bridge",
]
