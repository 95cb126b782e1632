"""``raysim bench``: what a round costs, compared with the same training in plain torch.

May import everything but ``cli``. Begin with ``workloads.py``; ``plain.py`` is the loop in plain torch, ``gpu`` a bench of
its own for machines with GPUs, ``one_process.py`` a run without Ray.
"""
