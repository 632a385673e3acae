"""The nouns, the small protocols and the errors. Every room imports this one and no other."""
