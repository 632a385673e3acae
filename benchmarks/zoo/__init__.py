"""Every network of the zoo, and the proof of its pruning against an independent reference."""
