"""Tests that need minutes: whole trainings with random seeds, real processes killed. Run by `make system`."""
