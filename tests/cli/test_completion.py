import os
import subprocess
import sys


def test_a_shell_completes_commands_and_keys(invoke):
    for shell in ("bash", "zsh", "fish"):
        assert "_RAYSIM_COMPLETE" in invoke("completion", shell).output
    script = "from raysim.cli import main; main(prog_name='raysim')"
    environment = {**os.environ, "_RAYSIM_COMPLETE": "bash_complete"}

    def completions(words, at):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**environment, "COMP_WORDS": words, "COMP_CWORD": str(at)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert completions("raysim comp", 1) == ["compare", "completion"]
    assert completions("raysim run a.yaml train.optimizer.l", 3) == ["train.optimizer.lr="]
    assert "algorithm.mid_dim=" in completions("raysim run a.yaml algorithm.", 3)
