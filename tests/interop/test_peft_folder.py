"""Adapters as a PEFT folder: what is written computes the same when it is read, and damage is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import random_model, shape
from folders import BYTES, write_ours
from torch.testing import assert_close

from pretrain.checkpoint.safetensors_file import TensorFiles, write_tensors
from pretrain.errors import CheckpointError, ConfigError
from pretrain.interop.families import FAMILIES
from pretrain.interop.family import choose_family
from pretrain.interop.peft_folder import CONFIG, WEIGHTS, read_adapters, write_adapters
