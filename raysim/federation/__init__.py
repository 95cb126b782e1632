"""The server's side of a run: who trains in a round, what is aggregated, what is measured.

May import ``workers``, which do the training, and everything below them. Begin with ``rounds.py``.
"""
