import pytest

from lightning_polystep.cli import main


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["export"], "the following arguments are required: --ckpt, --format."),
        (["export", "--ckpt", "a", "--format", "onx"], "argument --format: invalid choice: 'onx' (choose from "),
        (["report"], "the following arguments are required: folder."),
        (["solve"], "the following arguments are required: file."),
        (["solve", "a.cnf", "--seconds", "-1"], "argument --seconds: -1 is not above 0."),
    ],
    ids=["nothing", "format", "no folder", "no file", "seconds"],
)
def test_a_mistake_is_a_sentence_without_the_usage(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error, tip = capsys.readouterr().err.strip().splitlines()
    assert error.startswith(f"error: {sentence}")
    assert tip == f"tip: python -m lightning_polystep {arguments[0]} --help lists the options."
