"""Bundles: a network as files that run without dynbench and without torch, with what proves them right."""
