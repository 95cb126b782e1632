"""From a command to its runs: what is started, in which order, and what happens to a run.

May import everything but ``bench`` and ``cli``. Begin with ``command.py`` (run, resume, attach); it starts the driver actor
(``driver.py``), which takes the runs of a study (``study.py``) to their end. ``run.py`` has the loop over the rounds of a
run; ``launch.py`` places it on the cluster before; ``resumption.py`` finds what is finished, and where the rest goes on;
``finished.py`` has the results of what is finished, without a cluster.
``events.py`` has the events of a run, ``listeners/`` the reactions to them, one per file.
"""
