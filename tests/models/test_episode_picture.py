"""The picture of an episode, drawn after the test."""

import sys

import pytest
import pytorch_lightning as pl
from PIL import Image
from torch import nn

from datamodules import Episodes
from lightning_polystep.environments import ENVIRONMENTS
from models import EpisodePicture, PolicyNet, PolicySearch
from models.episode_picture import draw_episode
from tests.helpers.boring import trainer


def search_of(name):
    environment = ENVIRONMENTS[name]
    return PolicySearch(name, PolicyNet((environment.observations, 4, environment.outputs)))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_has_its_picture(name, tmp_path):
    draw_episode(search_of(name), tmp_path / "new" / "episode.png", moments=3)
    with Image.open(tmp_path / "new" / "episode.png") as picture:
        width, height = picture.size
        assert width > 2 * height
        assert len(picture.convert("RGB").getcolors(2**20)) > 20, "something is drawn"


def test_it_comes_after_the_test(tmp_path):
    run = trainer(tmp_path, callbacks=[EpisodePicture(moments=2)])
    run.test(search_of("CartPole-v1"), Episodes(test_episodes=3), verbose=False)
    assert (tmp_path / "episode.png").is_file()


def test_without_matplotlib_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = trainer(tmp_path, callbacks=[EpisodePicture()])
    with pytest.warns(UserWarning, match=r"No picture of an episode.*lightning-polystep\[examples\]"):
        run.test(search_of("CartPole-v1"), Episodes(test_episodes=3), verbose=False)


def test_other_modules_are_named(tmp_path):
    class Other(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

    with pytest.warns(UserWarning, match="draws the episodes of a PolicySearch"):
        EpisodePicture().on_test_end(trainer(tmp_path), Other())


def test_a_picture_needs_a_moment():
    with pytest.raises(ValueError, match="moments must be at least 1"):
        EpisodePicture(moments=0)
