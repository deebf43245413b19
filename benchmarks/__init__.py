"""Measurements that README and docs refer to; `./dev bench NAME` runs one and keeps its figures in `results/`."""
