from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_dry_run_shows_everything_and_starts_nothing(invoke, tmp_path):
    result = invoke("run", str(ROOT / "yaml" / "quickstart.yaml"), "--dry-run", "rounds=3")
    assert result.exit_code == 0, result.output
    assert "rounds: 3" in result.output
    assert "shared 101,568 · personal 25,610 · 406,272 bytes of parameters down" in result.output
    assert "a round: 4.88 MB down" in result.output  # 12 clients with 406,272 bytes each
    assert "102.4 kB per client that has trained, 0.00 GB for 36" in result.output
    assert "9 runs one after another: about" in result.output
    assert list(tmp_path.iterdir()) == []
