"""How to train and what to sweep: the defaults of engine/settings.py, which has their meanings."""

from snnet_vitdet.engine import SweepSettings, TrainSettings, as_config

train = as_config(TrainSettings())
sweep = as_config(SweepSettings())
