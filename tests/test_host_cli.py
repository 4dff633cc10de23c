"""Lightning's command line comes from the same of its two packages as the rest."""

from pytorch_lightning import cli

from lightning_polystep import host_cli


def test_the_command_line_is_that_of_the_package_in_use():
    assert host_cli.LightningCLI is cli.LightningCLI
    assert host_cli.LightningArgumentParser is cli.LightningArgumentParser
