"""What is done about the events of a run: a listener per file, each does one thing.

May import what ``experiments`` may. Begin with ``experiments/events.py``, which has the events and the interface.
"""
