"""From a command to its runs: what is started, in which order, and what happens to a run.

May import everything but ``bench`` and ``cli``. Begin with ``command.py`` (run, resume, attach); it starts the driver actor
(``driver.py``), which takes the runs of a study (``study.py``) through their rounds, each by ``run.py``. ``events.py`` has what
may happen to a run; ``listeners/`` what is done about it, a file each.
"""
