def test_init_writes_no_file_over_another(invoke, tmp_path):
    assert invoke("init", "mine.yaml").exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"mine.yaml", "raysim.schema.json"}
    result = invoke("init", "mine.yaml", "--method", "fedper")
    assert (result.exit_code, "mine.yaml exists; --force writes over it" in result.output) == (2, True)
    assert invoke("init", "mine.yaml", "--method", "fedper", "--force").exit_code == 0
    result = invoke("init", "other.yaml", "--data", "cifr10")
    assert (result.exit_code, "did you mean 'cifar10'?" in result.output) == (2, True)
    assert not (tmp_path / "other.yaml").exists()
