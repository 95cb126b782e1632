"""From the results of runs to tables, statistics and pictures.

May import ``tracking``, which reads finished runs, ``plots``, which draws, ``data`` and ``config``. Begin with
``comparison.py``, the table of a study; ``compare_report.py`` is what ``raysim compare`` prints; ``divergence.py`` names
runs that did not learn.
"""
