"""The run folder: journal, artefacts, lock, resume. `run` is the door; the other files serve it."""
