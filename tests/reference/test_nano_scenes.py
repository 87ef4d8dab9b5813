"""Scenes, the split between training and evaluation, and what captions say."""

from itertools import islice

import numpy as np
import pytest
from sana_reference.nano.captions import TELLINGS, Caption, captions, describe, draw_caption
from sana_reference.nano.scenes import Scene, Thing, draw, random_scene, visible
from sana_reference.nano.split import is_held_out, scenes
from sana_reference.nano.vocabulary import COLOURS, KINDS, OPPOSITE, RELATIONS


def some_scenes(count: int) -> list[Scene]:
    rng = np.random.default_rng(0)
    return [random_scene(rng) for _ in range(count)]


def lone(kind: str, colour: str = "red", background: str = "white", texture: str = "plain") -> Scene:
    return Scene((Thing(kind, colour, "large", 64.0, 64.0, 25.0),), "center", background, texture)


def test_the_same_scene_is_the_same_bytes():
    scene = some_scenes(1)[0]
    np.testing.assert_array_equal(draw(scene), draw(scene))


def cells(thing: Thing) -> set[tuple[int, int]]:
    """The latent's cells, 32 pixels wide, that a shape reaches into."""
    columns, rows = (range(int(c - thing.radius) // 32, int(c + thing.radius) // 32 + 1) for c in (thing.x, thing.y))
    return {(column, row) for column in columns for row in rows}


def test_shapes_stay_inside_the_picture_and_have_latent_cells_of_their_own():
    for scene in some_scenes(300):
        for i, thing in enumerate(scene.things):
            assert cells(thing) <= {(column, row) for column in range(4) for row in range(4)}
            assert all(cells(thing).isdisjoint(cells(other)) for other in scene.things[:i])


def test_every_shape_stands_out_from_its_background():
    assert all(visible(thing.colour, scene.background) for scene in some_scenes(300) for thing in scene.things)


def test_the_first_of_a_pair_stands_in_its_relation_to_the_second():
    for scene in some_scenes(300):
        if scene.relation in RELATIONS:
            first, second = scene.things
            ahead = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}[scene.relation]
            step = np.array([second.x - first.x, second.y - first.y])
            assert step @ ahead > abs(step @ ahead[::-1])


@pytest.mark.parametrize("kind", KINDS)
def test_edges_are_smooth_and_the_inside_has_the_shapes_colour(kind):
    picture = draw(lone(kind)).astype(int)
    red = np.array(COLOURS["red"])
    assert (np.abs(picture - red).sum(axis=-1) == 0).sum() > 300
    share = (picture[..., 0] - red[0]) / (picture[0, 0, 0] - red[0])
    assert ((share > 0.1) & (share < 0.9)).sum() > 10


def test_a_picture_twice_as_large_shows_the_same_scene():
    scene = lone("star")
    halved = draw(scene, 256).reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - draw(scene)).mean() < 1.0


def test_training_and_evaluation_never_share_a_combination():
    rng = np.random.default_rng(0)
    seen = {role for scene in islice(scenes(rng, held_out=False), 4000) for role in scene.roles}
    asked = list(islice(scenes(rng, held_out=True), 200))
    assert all(any(role not in seen for role in scene.roles) for scene in asked)


def test_a_pair_is_held_out_whichever_shape_is_named_first():
    for scene in some_scenes(500):
        if scene.relation in OPPOSITE:
            turned = Scene(scene.things[::-1], OPPOSITE[scene.relation], scene.background, scene.texture, scene.phase)
            assert is_held_out(turned) == is_held_out(scene)


def test_a_caption_that_tells_more_scores_more():
    for scene in some_scenes(100):
        told = captions(scene, np.random.default_rng(0))
        assert told[0].score == 1.0
        assert min(caption.score for caption in told) == told[-1].score < told[1].score
        assert len(told) == len(TELLINGS)


def test_captions_name_every_colour_and_never_a_wrong_one():
    synonyms = {"purple": {"purple", "violet"}, "cyan": {"cyan", "turquoise"}}
    for scene in some_scenes(200):
        words = set(describe(scene, TELLINGS[2], np.random.default_rng(1)).replace(",", "").split())
        shown = {thing.colour for thing in scene.things}
        assert all(words & synonyms.get(colour, {colour}) for colour in shown)
        assert not any(words & synonyms.get(colour, {colour}) for colour in COLOURS if colour not in shown)


def test_a_pair_told_from_the_other_side_says_the_opposite():
    scene = Scene(
        (Thing("star", "red", "small", 30, 64, 15), Thing("ring", "blue", "small", 90, 64, 15)),
        "left of",
        "white",
        "plain",
    )
    rng = np.random.default_rng(0)
    texts = {describe(scene, TELLINGS[1], rng) for _ in range(300)}
    assert {"a red star left of a blue ring", "a blue ring right of a red star"} <= texts
    assert not {"a red star right of a blue ring", "a blue ring left of a red star"} & texts


@pytest.mark.parametrize("temperature", [0.1, 0.5, 5.0])
def test_captions_are_drawn_by_the_softmax_of_score_over_temperature(temperature):
    choices = (Caption("much", 1.0), Caption("some", 0.6), Caption("little", 0.2))
    rng = np.random.default_rng(0)
    drawn = [draw_caption(choices, temperature, rng) for _ in range(4000)]
    weights = np.exp([caption.score / temperature for caption in choices])
    shares = [drawn.count(caption.text) / len(drawn) for caption in choices]
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.03)
