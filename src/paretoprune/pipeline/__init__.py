"""Composes the rooms: from a trained network to a measured front."""
