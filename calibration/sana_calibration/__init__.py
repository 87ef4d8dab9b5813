"""Prompt sets, recording, observers, smoothing and quantised graphs."""
