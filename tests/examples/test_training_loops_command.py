"""The command line of the training scripts."""

import pytest
import training_loops


@pytest.mark.parametrize(
    ("argument", "status", "told"), [("--help", 0, "Run these: plain"), ("plan", 2, "there is no plan")]
)
def test_help_and_a_script_that_there_is_not(argument, status, told, capsys):
    with pytest.raises(SystemExit) as done:
        training_loops.main([argument])
    assert done.value.code == status
    assert told in "".join(capsys.readouterr())
