"""What is done about the events of a run (``experiments/events.py``): a listener per file, each does one thing."""
